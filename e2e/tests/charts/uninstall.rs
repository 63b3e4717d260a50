//! What the operator's chart runs after the operator is gone.

use k8s_openapi::api::batch::v1::Job;

use super::{
    objects::of_kind,
    operator::{CHART, deployment, installations, restricted},
    render,
};

#[test]
fn what_runs_after_the_operator_is_a_hook_that_no_selector_takes() {
    for values in installations() {
        let objects = render(CHART, &values);
        let deployment = deployment(&objects);
        let wanted =
            values["uninstallHook"]["enabled"] != false && values["rbac"]["create"] != false;
        let jobs = of_kind::<Job>("Job", &objects);
        assert_eq!(jobs.len(), usize::from(wanted));
        for job in jobs {
            let pod = job.spec.unwrap().template;
            let labels = pod.metadata.unwrap().labels.unwrap();
            let selector = deployment.spec.selector.match_labels.as_ref().unwrap();
            assert!(
                selector
                    .iter()
                    .any(|(key, value)| labels.get(key) != Some(value))
            );
            let pod = pod.spec.unwrap();
            restricted(&pod, &pod.containers[0]);
            // The Job looks for the operator's pods by the Deployment's own selector.
            let words: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let reported = pod.containers[0].args.as_ref().unwrap();
            let reported = reported
                .iter()
                .find_map(|a| a.strip_prefix("--operator-selector="))
                .unwrap();
            let mut reported: Vec<_> = reported.split(',').collect();
            reported.sort_unstable();
            assert_eq!(reported, words);
            let args = pod.containers[0].args.as_ref().unwrap();
            let served = args
                .iter()
                .find_map(|a| a.strip_prefix("--watch-namespace="));
            let asked = values["watchNamespaces"].as_array().map(|all| {
                let all = all.iter().map(|namespace| namespace.as_str().unwrap());
                all.collect::<Vec<_>>().join(",")
            });
            assert_eq!(served, asked.as_deref());
        }
        let hooks: Vec<_> = objects
            .iter()
            .filter(|object| object["metadata"]["annotations"]["helm.sh/hook"] == "post-delete")
            .map(|object| object["metadata"]["name"].as_str().unwrap())
            .collect();
        let named = objects
            .iter()
            .map(|object| object["metadata"]["name"].as_str().unwrap());
        let named: Vec<_> = named.filter(|name| name.contains("-uninstall")).collect();
        assert_eq!(hooks, named);
        assert_eq!(hooks.is_empty(), !wanted);
    }
}
