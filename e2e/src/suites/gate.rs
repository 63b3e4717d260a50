//! A GPU that does not compute never gets a job: the pool says why, and recovers by itself.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Ctx;
use crate::device_plugin::state::Device;

/// What is broken, and which words must be on the resource.
struct Case {
    name: &'static str,
    change: fn(&mut Device),
    spec: fn() -> Value,
    class: &'static str,
    code: Option<i32>,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "wddm",
        change: |device| {
            device
                .properties
                .insert("profile".to_owned(), json!("rtx2060-wddm"));
        },
        spec: || json!({"smoke": {"managedMemory": "Require"}}),
        class: "unsupported",
        code: None,
        says: &["RTX 2060", "concurrent managed access"],
    },
    Case {
        name: "too-old",
        change: |device| {
            device
                .properties
                .insert("profile".to_owned(), json!("p100"));
        },
        spec: || json!({}),
        class: "unsupported",
        code: None,
        says: &["6.0", "7.0"],
    },
    Case {
        name: "no-binary-209",
        change: |device| device.faults.push(fault("cuModuleLoadDataEx", 209)),
        spec: || json!({}),
        class: "unsupported",
        code: Some(209),
        says: &["older than compute capability 7.0"],
    },
    Case {
        name: "old-driver-222",
        change: |device| device.faults.push(fault("cuModuleLoadDataEx", 222)),
        spec: || json!({}),
        class: "config",
        code: Some(222),
        says: &["driver is older", "R525"],
    },
    Case {
        name: "wrong-bit",
        change: Device::compute_wrongly,
        spec: || json!({}),
        class: "device",
        code: None,
        says: &[],
    },
];

fn fault(call: &str, code: i32) -> Value {
    json!({"call": call, "code": code})
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    for case in CASES {
        the_pool_says_why_and_recovers(ctx, case)
            .await
            .map_err(|error| error.context(case.name))?;
    }
    Ok(())
}

async fn the_pool_says_why_and_recovers(ctx: &Ctx, case: &Case) -> Result<()> {
    // Given a node whose devices are all broken alike, and a job that waits
    ctx.devices(case.change)?;
    let mark = ctx.last_call().await?;
    let job = ctx
        .queue(
            case.name,
            "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check",
        )
        .await?;
    ctx.apply(&ctx.pool(case.name, (case.spec)())).await?;

    // When the gate has tried
    let message = ctx
        .condition(case.name, "GpuHealthy", "False", "GateFailed")
        .await?;

    // Then the resource says what is wrong, in this fault's own words
    for word in case.says {
        ensure!(message.contains(word), "{word:?} is missing in: {message}");
    }
    let status = ctx.status(case.name).await?;
    let failure = status.last_failures.first().cloned();
    let known = failure
        .as_ref()
        .map(|failure| (failure.class.as_str(), failure.code));
    ensure!(known == Some((case.class, case.code)), "{failure:?}");
    let stalls = matches!(case.class, "config" | "unsupported");
    let stalled = status
        .conditions
        .iter()
        .any(|c| c.type_ == "Stalled" && c.status == "True");
    ensure!(
        stalled == stalls,
        "Stalled is {stalled} for the class {}",
        case.class
    );

    // And GitHub has not heard of a runner: the job waits
    ensure!(
        ctx.registrations(mark).await? == 0,
        "a runner was registered on a broken device"
    );
    ensure!(
        ctx.github.job(job).await?.started_at.is_none(),
        "a broken device got a job"
    );

    // When the devices are well again
    ctx.devices(|_| {})?;

    // Then the pool recovers by itself, and the job runs
    ctx.succeeded(job).await?;
    ctx.condition(case.name, "GpuHealthy", "True", "GatePassed")
        .await?;
    ctx.condition(case.name, "Stalled", "False", "Progressing")
        .await?;
    ctx.delete(case.name).await
}
