//! `spec.github`: the address, and the way there.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Notes};

/// The proxy of a scale set.
pub(super) fn proxy(mut given: Fields, github: &mut Map<String, Value>, notes: &mut Notes) {
    let had_any = ["https", "http", "noProxy"]
        .iter()
        .any(|field| given.has(field));
    let (mut https, mut http) = (given.object("https"), given.object("http"));
    let urls = [https.text("url", notes), http.text("url", notes)];
    let [of_https, of_http] = &urls;
    if of_https.is_some() && of_http.is_some() && of_https != of_http {
        notes.say(
            &given.path("http"),
            "a CudaRunner has one proxy, and GitHub is reached by https: that one is taken",
        );
    }
    let secrets = [
        https.text("credentialSecretRef", notes),
        http.text("credentialSecretRef", notes),
    ];
    let paths = [&https, &http].map(|fields| fields.path("url"));
    let all = urls.into_iter().zip(secrets).zip(paths);
    let chosen = all.into_iter().find(|((url, _), _)| url.is_some());
    let exceptions = given.texts("noProxy");
    if let Some(((Some(url), secret), path)) = chosen {
        let (url, had_user) = without_user(&url);
        if had_user {
            notes.say(
                &path,
                "it holds a user or a password, which is not written out: put username and password into a Secret, and name it in spec.github.proxy.credentialsRef",
            );
        }
        let mut proxy = json!({"url": url});
        if let Some(name) = secret {
            proxy["credentialsRef"] = json!({"name": name});
        }
        if !exceptions.is_empty() {
            proxy["noProxy"] = json!(exceptions);
        }
        github.insert("proxy".to_owned(), proxy);
    } else if had_any {
        notes.say(
            &given.path("https.url"),
            "there is none, so there is no proxy: left out",
        );
    }
    for fields in [https, http, given] {
        fields.end(notes);
    }
}

/// An address without its user and password, and whether it had any. No host has an `@`, and a password may have anything.
fn without_user(url: &str) -> (String, bool) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (user, rest) = rest
        .rsplit_once('@')
        .map_or((None, rest), |(user, rest)| (Some(user), rest));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, _) = rest.split_at(end);
    (format!("{scheme}://{host}"), user.is_some())
}

/// The certificate authority of a scale set's server.
pub(super) fn authority(mut given: Fields, github: &mut Map<String, Value>, notes: &mut Notes) {
    let had_any = given.has("certificateFrom");
    let mut from = given.object("certificateFrom");
    let mut reference = from.object("configMapKeyRef");
    let (name, key) = (reference.text("name", notes), reference.text("key", notes));
    if let (Some(name), Some(key)) = (name, key) {
        github.insert("caBundleRef".to_owned(), json!({"name": name, "key": key}));
    } else if had_any {
        notes.say(
            &given.path("certificateFrom.configMapKeyRef"),
            "without name and key it names no certificate: left out",
        );
    }
    // The operator mounts it for the agent wherever that looks.
    given.skip(&["runnerMountPath"]);
    for fields in [reference, from, given] {
        fields.end(notes);
    }
}
