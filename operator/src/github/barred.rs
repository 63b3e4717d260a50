//! Refusals that no permission helps against.

use super::ask::Answer;

const SINGLE_SIGN_ON: &str = "authorize the token for the organization's single sign-on, with \"Configure SSO\" in the list of tokens of whoever made it";

/// Words of a 403 that no permission helps against, in lower case, and what to do. All of the words must be there.
const BARRED: [(&[&str], &str); 6] = [
    (
        &["ip allow list"],
        "add the addresses by which the operator leaves your network to the IP allow list of the organization or enterprise",
    ),
    (
        &["archived"],
        "an archived repository runs nothing: unarchive it, or delete this resource",
    ),
    (
        &["self-hosted runners", "disabled"],
        "an owner has switched self-hosted runners off: allow them in the settings of the organization or enterprise, under Actions, Runners",
    ),
    (
        &["actions", "disabled"],
        "GitHub Actions are switched off: allow them in the settings of the repository or organization, under Actions",
    ),
    (&["saml"], SINGLE_SIGN_ON),
    (&["single sign-on"], SINGLE_SIGN_ON),
];

/// What to do where something else than a permission is in the way.
pub(super) fn barred(answer: &Answer) -> Option<&'static str> {
    let by_header = answer.header("x-github-sso").map(|_| SINGLE_SIGN_ON);
    by_header.or_else(|| barred_by(&answer.message()))
}

/// The same for GitHub's words alone.
pub(super) fn barred_by(message: &str) -> Option<&'static str> {
    let message = message.to_lowercase();
    let has_all = |words: &&[&str]| words.iter().all(|word| message.contains(word));
    let found = BARRED.iter().find(|(words, _)| has_all(words));
    found.map(|(_, advice)| *advice)
}
