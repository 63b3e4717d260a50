//! `spec.github`: the address, and the way there.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Notes};

/// The proxy of a scale set.
pub(super) fn proxy(mut given: Fields, github: &mut Map<String, Value>, notes: &mut Notes) {
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
    let chosen = urls.into_iter().zip(secrets).find(|(url, _)| url.is_some());
    let exceptions = given.texts("noProxy");
    if let Some((Some(url), secret)) = chosen {
        let (url, had_user) = without_user(&url);
        if had_user {
            notes.say(
                &given.path("https.url"),
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
    }
    for fields in [https, http, given] {
        fields.end(notes);
    }
}

/// An address without its user and password, and whether it had any.
fn without_user(url: &str) -> (String, bool) {
    let Some((scheme, rest)) = url.split_once("://") else {
        return (format!("http://{url}"), false);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, _) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    (format!("{scheme}://{host}"), authority.contains('@'))
}

/// The certificate authority of a scale set's server.
pub(super) fn authority(mut given: Fields, github: &mut Map<String, Value>, notes: &mut Notes) {
    let mut from = given.object("certificateFrom");
    let mut reference = from.object("configMapKeyRef");
    let (name, key) = (reference.text("name", notes), reference.text("key", notes));
    if let (Some(name), Some(key)) = (name, key) {
        github.insert("caBundleRef".to_owned(), json!({"name": name, "key": key}));
    }
    // The operator mounts it for the agent wherever that looks.
    given.skip(&["runnerMountPath"]);
    for fields in [reference, from, given] {
        fields.end(notes);
    }
}
