//! The page of the fleet, in a real browser, and `kubectl cudarunner top`.

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::LOOK_AGAIN;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, plugin::plugin, port_forward::PortForward, secrets};
use crate::{
    browser::Browser, deploy, device_plugin::state::Device, kwok, paths, report::Story, tools,
};

/// What a job may be called by whoever may push a workflow.
const HOSTILE: &str = "<script>document.title='owned'</script>";
/// So many nodes, of eight devices each.
const NODES: usize = 200;
/// Nodes of the pictures, beside the real one.
const IN_THE_PICTURE: usize = 4;
/// By then a page of so many is there, in milliseconds, on a machine that has other things to do as well. The bench's row `page`
/// measures the server's part.
const RENDERED: f64 = 3000.0;
/// The width of a narrow screen, in pixels.
const NARROW: u32 = 360;
/// The text whose contrast to its ground is less than 4.5, which is the least for people who see less well.
/// <https://www.w3.org/TR/WCAG22/#contrast-minimum>
const FAINT: &str = r"(() => {
    const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
        .map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
    const ground = (element) => {
        const colour = parts(getComputedStyle(element).backgroundColor);
        return colour[3] === 0 && element.parentElement ? ground(element.parentElement) : colour;
    };
    const contrast = (element) => {
        const both = [parts(getComputedStyle(element).color), ground(element)].map(light);
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    };
    const has_text = (element) => [...element.childNodes]
        .some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    return [...document.body.querySelectorAll('*')]
        .filter((element) => has_text(element) && element.getClientRects().length > 0)
        .filter((element) => contrast(element) < 4.5)
        .map((element) => `${element.textContent.trim()}: ${contrast(element).toFixed(1)}`);
})()";
/// The standard's code points of keys.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // A browser is installed where there is none.
    tokio::task::spawn_blocking(|| tools::ensure_browser(&Story::default())).await??;
    without_the_page(ctx).await?;
    let on = ["fleetPage.enabled=true"];
    deploy::with_values(&ctx.cluster, &on, async || with_the_page(ctx).await).await
}

async fn without_the_page(ctx: &Ctx) -> Result<()> {
    let screen = plugin(ctx, 0, &["top"]).await?;
    ensure!(screen.contains("From the resources alone"), "{screen}");
    Ok(())
}

async fn with_the_page(ctx: &Ctx) -> Result<()> {
    // Given a runner that is busy, and a job of a hostile name that waits for it
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    let runner = ctx.idle("pool", 1).await?.remove(0);
    let held = ctx.hold("train").await?;
    ctx.picked_up(held).await?;
    let waits = ctx.queue(HOSTILE, "true").await?;
    ctx.annotate("pool", LOOK_AGAIN, "now").await?;

    let forward = PortForward::fleet_page(&ctx.cluster).await?;
    let origin = format!("http://{}/", forward.local);
    let page = Page::open(ctx, &origin).await?;
    page.shows("the job that waits", HOSTILE).await?;
    page.ask(|browser| {
        let title = browser.look("document.title")?;
        ensure!(title == "Fleet", "a job's name has run: {title}");
        let scripts = browser.look("document.querySelectorAll('script').length")?;
        ensure!(scripts == 1, "{scripts} scripts are on the page");
        Ok(())
    })
    .await?;
    says_the_same(ctx, &runner).await?;
    keyboard(&page, &origin).await?;

    // When the runner is free, then the open page says so by itself, and the waiting job has its turn
    page.open_at(&origin).await?;
    page.shows("that it is live", "live").await?;
    page.ask(|browser| browser.look("window.same = true").map(drop))
        .await?;
    ctx.github.release(held).await?;
    ctx.succeeded(held).await?;
    ctx.succeeded(waits).await?;
    // The queue of a fixed number of runners is read every few minutes, and when somebody asks
    ctx.annotate("pool", LOOK_AGAIN, "again").await?;
    page.shows("that no job waits", "No job waits.").await?;
    page.ask(|browser| {
        let same = browser.look("window.same === true")?;
        ensure!(same == true, "the page was loaded anew");
        Ok(())
    })
    .await?;

    // And its history has the job, as text
    let pool = format!("{origin}pool?namespace={}&name=pool", ctx.namespace);
    ctx.wait_for("the job's end on its pool's page", SOON, async || {
        page.open_at(&pool).await?;
        let text = page.text().await?;
        Ok(text.contains(HOSTILE).then_some(()))
    })
    .await?;
    page.is_clean(&origin).await?;
    many(ctx, &page, &origin).await?;
    page.is_clean(&origin).await?;
    no_secret(ctx, &forward).await?;
    ctx.delete("pool").await?;
    scene(ctx, &page, &origin).await?;
    drop(forward);
    it_begins_anew(ctx).await
}

/// No page has a credential.
async fn no_secret(ctx: &Ctx, forward: &PortForward) -> Result<()> {
    let shapes = secrets::shapes()?;
    let pool = format!("/pool?namespace={}&name=pool", ctx.namespace);
    for path in ["/", &pool, "/hours", "/hours.csv", "/api/fleet"] {
        let text = forward.get(path).await?;
        let found = secrets::in_text(&text, &shapes);
        ensure!(!text.is_empty() && found.is_empty(), "{path}: {found:?}");
    }
    Ok(())
}

/// What an operator that was started anew cannot know it says.
async fn it_begins_anew(ctx: &Ctx) -> Result<()> {
    let (before, _) = since_when(ctx).await?;
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    let now = ctx.wait_for("the page of another operator", SOON, async || {
        // Until it is ready nobody answers.
        Ok(since_when(ctx).await.ok().filter(|(now, _)| *now > before))
    });
    let (now, page) = now.await?;
    let said = page.split("knows of what happened since").nth(1);
    let moment = now.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    ensure!(
        said.is_some_and(|said| said.contains(&moment)),
        "{moment} is not said: {page}"
    );
    Ok(())
}

/// Since when the operator knows anything, as the document has it, and the page that says so.
async fn since_when(ctx: &Ctx) -> Result<(Timestamp, String)> {
    let forward = PortForward::fleet_page(&ctx.cluster).await?;
    let document: Value = serde_json::from_str(&forward.get("/api/fleet").await?)?;
    let since = document["operator"]["since"].as_str();
    let since = since.context("nobody says since when")?.parse()?;
    Ok((since, forward.get("/").await?))
}

/// `kubectl cudarunner top` and the document say what the page says.
async fn says_the_same(ctx: &Ctx, runner: &str) -> Result<()> {
    let screen = plugin(ctx, 0, &["top"]).await?;
    ensure!(screen.contains("From the operator"), "{screen}");
    let key = format!("{}/pool: 1 job", ctx.namespace);
    ensure!(screen.contains(&key), "{screen}");
    lists_the_job(ctx, &screen).await?;
    // The kubelet tells of a busy runner a moment later.
    let found = ctx.wait_for("the runner's device to run a job", SOON, async || {
        let document = document(ctx).await?;
        let nodes = document["nodes"].as_array().into_iter().flatten();
        let mut devices = nodes.flat_map(|node| node["devices"].as_array().into_iter().flatten());
        let held = devices.find(|device| device["runner"] == runner);
        Ok(held.filter(|device| device["state"] == "Job").cloned())
    });
    let held = found.await?;
    ensure!(held["uuid"].is_string(), "{held:#}");
    Ok(())
}

/// The job that waits is listed, with its page on GitHub, what it asks for, and since when it waits.
async fn lists_the_job(ctx: &Ctx, screen: &str) -> Result<()> {
    let document = document(ctx).await?;
    let mut pools = document["pools"].as_array().into_iter().flatten();
    let pool = pools.find(|pool| pool["namespace"] == ctx.namespace);
    let queue = &pool.context("the pool is not listed")?["queue"];
    let [job] = queue["waiting"].as_array().map_or(&[][..], Vec::as_slice) else {
        anyhow::bail!("{queue:#}");
    };
    let page = format!(
        "{}/{}/actions/runs/{}/job/{}",
        ctx.cluster.github, ctx.repository, job["runId"], job["id"]
    );
    ensure!(
        job["name"] == HOSTILE && job["url"] == page && job["repository"] == ctx.repository,
        "{job:#}, not {page}"
    );
    ensure!(
        job["labels"]
            .as_array()
            .is_some_and(|labels| !labels.is_empty())
            && job["since"].is_string(),
        "{job:#}"
    );
    ensure!(queue["waitingNotListed"] == 0, "{queue:#}");
    ensure!(screen.contains(&page), "{screen}");
    Ok(())
}

async fn document(ctx: &Ctx) -> Result<Value> {
    let screen = plugin(ctx, 0, &["top", "-o", "json"]).await?;
    let document: Value = serde_json::from_str(&screen)?;
    ensure!(
        document["apiVersion"] == "cudarunner.dev/fleet/v1",
        "{document:#}"
    );
    ensure!(document["operator"]["leads"] == true, "{document:#}");
    Ok(document)
}

/// By keyboard alone: past the head, to a device, and to its page.
async fn keyboard(page: &Page, origin: &str) -> Result<()> {
    page.open_at(origin).await?;
    page.ask(|browser| {
        browser.press(TAB)?;
        let first = browser.look("document.activeElement.className")?;
        ensure!(first == "skip", "the first key leads to {first}");
        browser.press(ENTER)?;
        let main = browser.look("document.activeElement.id")?;
        ensure!(main == "content", "the content is not reached: {main}");
        let is_device = "document.activeElement.matches('.devices a')";
        for _ in 0..50 {
            browser.press(TAB)?;
            if browser.look(is_device)? == true {
                let outline =
                    browser.look("getComputedStyle(document.activeElement).outlineStyle")?;
                ensure!(
                    outline == "solid",
                    "where the keyboard is is not seen: {outline}"
                );
                return browser.press(ENTER);
            }
        }
        anyhow::bail!("no device is reached by keyboard")
    })
    .await?;
    page.shows("the device's page", "Gates and jobs").await
}

/// Many nodes: in time, without scripts.
async fn many(ctx: &Ctx, page: &Page, origin: &str) -> Result<()> {
    beside(ctx, NODES, async || shown(page, origin, ctx).await).await
}

/// Does something while there are so many simulated nodes, of which somebody else holds three GPUs.
async fn beside(ctx: &Ctx, nodes: usize, work: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    kwok::add_nodes(&ctx.client, nodes).await?;
    let outcome = match holds(ctx, 3).await {
        Ok(()) => work().await,
        Err(error) => Err(error),
    };
    let pods: Api<Pod> = ctx.api();
    let _ = pods
        .delete("train", &DeleteParams::default().grace_period(0))
        .await;
    for number in 0..nodes {
        kwok::remove_node(&ctx.client, number).await?;
    }
    outcome
}

/// What the guide shows: jobs that run, a GPU that fails its gate, a job that waits for it, and one that no pool takes. In the
/// light, in the dark, and on a narrow screen.
async fn scene(ctx: &Ctx, page: &Page, origin: &str) -> Result<()> {
    let two = json!({"replicas": 2, "labels": ["self-hosted", "train"]});
    ctx.apply(&ctx.pool("train", two)).await?;
    ctx.idle("train", 2).await?;
    let mut held = vec![];
    for name in ["train-vit", "train-gpt"] {
        let job = ctx.queue_for(name, &["train"], "true", true).await?;
        ctx.picked_up(job).await?;
        held.push(job);
    }
    ctx.devices(Device::compute_wrongly)?;
    ctx.queue_for("nightly-eval", &["eval"], "true", false)
        .await?;
    ctx.queue_for("train-b300", &["train", "b300"], "true", false)
        .await?;
    let eval = json!({"labels": ["self-hosted", "eval"]});
    ctx.apply(&ctx.pool("eval", eval)).await?;
    ctx.wait_for("the gate to fail", SOON, async || {
        let failed = ctx.status("eval").await?.last_failures;
        Ok(failed
            .first()
            .is_some_and(|f| f.class.as_str() == "device")
            .then_some(()))
    })
    .await?;
    beside(ctx, IN_THE_PICTURE, async || {
        shows_all(ctx, page, origin).await?;
        photographed(ctx, page, origin).await
    })
    .await?;
    page.is_clean(origin).await?;
    ctx.devices(|_| {})?;
    ctx.delete("eval").await?;
    for job in held {
        ctx.github.release(job).await?;
        ctx.succeeded(job).await?;
    }
    ctx.delete("train").await
}

/// Waits until all of the scene is on the page.
async fn shows_all(ctx: &Ctx, page: &Page, origin: &str) -> Result<()> {
    for pool in ["train", "eval"] {
        ctx.annotate(pool, LOOK_AGAIN, "for the picture").await?;
    }
    ctx.wait_for("all of the scene on the page", SOON, async || {
        page.open_at(origin).await?;
        let text = page.text().await?;
        let letters =
            "[...document.querySelectorAll('.devices .d')].map(d => d.textContent.trim()).join('')";
        let letters = page.ask(move |browser| browser.look(letters)).await?;
        let letters = letters.as_str().unwrap_or_default();
        let count = |letter: &str| letters.matches(letter).count();
        let why = "[...document.querySelectorAll('td.why')].map(d => d.textContent).join('')";
        let why = page.ask(move |browser| browser.look(why)).await?;
        let has_reason = why.as_str().is_some_and(|why| why.contains("GPU"));
        let waits = ["nightly-eval", "train-b300"];
        let waits = waits.iter().all(|job| text.contains(job));
        let states = count("J") == 2 && count("–") == 3 && count("F") + count("Q") > 0;
        Ok((waits && has_reason && states).then_some(()))
    })
    .await
}

async fn photographed(ctx: &Ctx, page: &Page, origin: &str) -> Result<()> {
    let pictures = pictures(ctx)?;
    let broken = page
        .ask(move |browser| {
            browser.size(1200, 800)?;
            browser.size(1200, height(browser)?)?;
            fs::write(pictures.join("fleet.png"), browser.picture()?)?;
            browser.size(NARROW, 700)?;
            let right = "Math.ceil(document.querySelector('td.why').getBoundingClientRect().right)";
            let right = browser.look(right)?;
            ensure!(
                right.as_u64() <= Some(NARROW.into()),
                "why a job waits ends at {right} pixels"
            );
            browser.size(NARROW, height(browser)?)?;
            fs::write(pictures.join("fleet-narrow.png"), browser.picture()?)?;
            browser.look("document.querySelector('a.failed, a.quarantined').getAttribute('href')")
        })
        .await?;
    // The GPU's own page, where its history is
    let broken = broken.as_str().context("the broken GPU has no page")?;
    let device = format!("{origin}{broken}");
    let pool = format!("{origin}pool?namespace={}&name=train", ctx.namespace);
    for url in [origin, &pool, &format!("{origin}hours"), &device] {
        page.open_at(url).await?;
        let of_page = url.to_owned();
        page.ask(move |browser| is_readable(browser).context(of_page))
            .await?;
    }
    page.shows("its gate", "eval-").await?;
    let pictures = self::pictures(ctx)?;
    page.ask(move |browser| {
        browser.size(1200, 800)?;
        browser.dark(true)?;
        browser.size(1200, height(browser)?)?;
        fs::write(pictures.join("device.png"), browser.picture()?)?;
        browser.dark(false)?;
        browser.size(1200, 800)
    })
    .await
}

/// A page fits a narrow screen, and its text can be read on its ground, in the light and in the dark.
fn is_readable(browser: &Browser) -> Result<()> {
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.look(ground)?;
    for dark in [false, true] {
        browser.dark(dark)?;
        let now = browser.look(ground)?;
        ensure!(
            (now != light) == dark,
            "{light}, and where it is dark: {dark}, {now}"
        );
        for width in [1200, NARROW] {
            browser.size(width, 800)?;
            let wide = browser.look("document.documentElement.scrollWidth")?;
            ensure!(
                wide.as_u64() <= Some(width.into()),
                "a screen of {width} pixels shows {wide}"
            );
            let faint = browser.look(FAINT)?;
            let faint = faint.as_array().context("no list of faint text")?;
            ensure!(
                faint.is_empty(),
                "dark: {dark}, too little contrast: {faint:?}"
            );
        }
    }
    browser.dark(false)
}

/// How high a picture is that shows all of the page, or much of it.
fn height(browser: &Browser) -> Result<u32> {
    let high = browser.look("Math.ceil(document.body.getBoundingClientRect().bottom)")?;
    let high = high.as_u64().context("no height")?;
    Ok(u32::try_from(high.clamp(200, 1600))?)
}

/// A pod of somebody else holds so many GPUs of a node.
async fn holds(ctx: &Ctx, gpus: u32) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let pod = json!({
        "metadata": {"name": "train"},
        "spec": {
            "nodeName": kwok::name(0),
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "train", "image": "train",
                "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}},
            }],
        },
    });
    let pod = serde_json::from_value(pod)?;
    pods.create(&PostParams::default(), &pod).await?;
    Ok(())
}

async fn shown(page: &Page, origin: &str, ctx: &Ctx) -> Result<()> {
    ctx.wait_for("what others hold to be known", SOON, async || {
        let document = document(ctx).await?;
        Ok((document["devices"]["NotOurs"] == 3).then_some(()))
    })
    .await?;
    let what = format!("the page within {RENDERED} ms");
    ctx.wait_for(&what, SOON, async || {
        page.open_at(origin).await?;
        let end = "performance.getEntriesByType('navigation')[0].loadEventEnd";
        let end = page.ask(move |browser| browser.look(end)).await?;
        let took = end.as_f64().context("no time")?;
        println!("{NODES} nodes: the page is there after {took:.0} ms");
        Ok((took > 0.0 && took < RENDERED).then_some(()))
    })
    .await?;
    page.ask(move |browser| {
        let squares = browser.look("document.querySelectorAll('.devices .d').length")?;
        let least = NODES * 8;
        ensure!(
            squares.as_u64() >= u64::try_from(least).ok(),
            "{squares} squares"
        );
        Ok(())
    })
    .await?;
    without_scripts(ctx, page, origin).await
}

/// All is there, and links lead on.
async fn without_scripts(ctx: &Ctx, page: &Page, origin: &str) -> Result<()> {
    page.ask(|browser| browser.scripts(false)).await?;
    page.open_at(origin).await?;
    page.ask(|browser| {
        let squares = browser.look("document.querySelectorAll('.devices .d').length")?;
        ensure!(
            squares.as_u64() > Some(1000),
            "{squares} squares without scripts"
        );
        let live = browser.look("document.getElementById('live').textContent")?;
        ensure!(live == "", "a script has run: {live}");
        Ok(())
    })
    .await?;
    page.open_at(&format!("{origin}hours")).await?;
    page.shows("the repository's hours", &ctx.repository)
        .await?;
    page.ask(|browser| browser.scripts(true)).await
}

/// Where pictures go: into the guide where it is to be written anew.
fn pictures(ctx: &Ctx) -> Result<std::path::PathBuf> {
    let folder = if std::env::var_os("UPDATE_DOCS").is_some() {
        paths::repository().join("docs/guides/fleet-page")
    } else {
        ctx.cluster.dir.join("pictures")
    };
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A page in a browser.
struct Page(Arc<Browser>);

impl Page {
    async fn open(ctx: &Ctx, url: &str) -> Result<Self> {
        let dir = ctx.cluster.dir.clone();
        let browser = tokio::task::spawn_blocking(move || Browser::start(&dir)).await??;
        let page = Self(Arc::new(browser));
        page.open_at(url).await?;
        Ok(page)
    }

    /// Works with the browser, which blocks.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Browser) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let browser = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&browser)).await?
    }

    async fn open_at(&self, url: &str) -> Result<()> {
        let url = url.to_owned();
        self.ask(move |browser| browser.open(&url)).await
    }

    /// What a person reads.
    async fn text(&self) -> Result<String> {
        let text = self.ask(|browser| browser.look("document.body.innerText"));
        Ok(text.await?.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a person reads this.
    async fn shows(&self, what: &str, words: &str) -> Result<()> {
        crate::wait::wait_for(what, SOON, async || {
            Ok(self.text().await?.contains(words).then_some(()))
        })
        .await
    }

    /// Nothing went wrong in the browser, and nothing came from elsewhere.
    async fn is_clean(&self, origin: &str) -> Result<()> {
        let (console, requests) = self
            .ask(|browser| Ok((browser.console()?, browser.requests()?)))
            .await?;
        ensure!(console.is_empty(), "the console says {console:#?}");
        ensure!(requests.len() > 3, "only {requests:?} were asked for");
        let mut elsewhere = requests.iter().filter(|url| !url.starts_with(origin));
        let elsewhere = elsewhere.find(|url| !url.starts_with("data:"));
        ensure!(elsewhere.is_none(), "a page asked for {elsewhere:?}");
        Ok(())
    }
}
