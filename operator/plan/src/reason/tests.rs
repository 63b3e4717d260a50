use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use proptest::prelude::*;

use super::{ALL, Place, Reason, Section, Stored};
use crate::{Notice, Plan, kind};

/// Every plan that a test makes says each reason where the catalogue has it.
pub(crate) fn all_in_their_places(plan: &Plan) {
    for condition in &plan.status.conditions {
        let Stored::Known(reason) = Stored::parse(&condition.reason) else {
            continue;
        };
        let may = reason.entry().may_stand_in(&condition.type_);
        assert!(may, "{reason} in {}", condition.type_);
    }
    for notice in plan.notices.iter().chain(&plan.news) {
        let Stored::Known(reason) = notice.reason else {
            continue;
        };
        assert!(
            reason.is_trouble() || !notice.warning,
            "{reason} is a warning"
        );
        let is_alone = !is_of_a_condition(notice, &plan.status.conditions);
        let places = reason.entry().places;
        let is_said = places.contains(&Place::Event) || places.contains(&Place::Failure);
        assert!(is_said || !is_alone, "{reason} in an Event");
    }
    for failure in &plan.status.last_failures {
        if let Stored::Known(reason) = Stored::parse(&failure.reason) {
            let places = reason.entry().places;
            assert!(places.contains(&Place::Failure), "{reason} of a runner");
        }
    }
}

fn is_of_a_condition(notice: &Notice, conditions: &[Condition]) -> bool {
    conditions
        .iter()
        .any(|c| c.reason == notice.reason.as_str())
}

#[test]
fn a_word_is_one_reason_and_the_catalogue_is_in_the_order_of_the_type() {
    let words: BTreeSet<&str> = ALL.iter().map(|entry| entry.word).collect();
    assert_eq!(words.len(), ALL.len());
    for entry in ALL {
        assert_eq!(entry.reason.word(), entry.word);
        assert_eq!(Stored::parse(entry.word), entry.reason);
    }
}

#[test]
fn what_is_trouble_says_what_to_do_and_is_explained_apart_from_the_rest() {
    for entry in ALL {
        let is_well = entry.section == Section::Well;
        assert_eq!(entry.advice.is_none(), is_well, "{}", entry.word);
        for text in [Some(entry.means), entry.advice].into_iter().flatten() {
            let fits = !text.contains(['|', '\n']) && text.ends_with(['.', '?']);
            assert!(fits, "{}: {text}", entry.word);
        }
    }
}

#[test]
fn a_resource_that_no_operator_has_seen_says_so_with_a_reason_of_the_catalogue() {
    let crd = serde_json::to_string(&cudarunner_crds::crd()).unwrap();
    let word = format!(r#""reason":"{}""#, Reason::NotSeen);
    assert!(crd.contains(&word));
    assert!(Reason::NotSeen.entry().may_stand_in(kind::READY));
}

proptest! {
    #[test]
    fn whatever_a_status_holds_is_read_and_written_as_it_was(word in ".*") {
        let stored = Stored::parse(&word);
        prop_assert_eq!(stored.as_str(), word.as_str());
        prop_assert_eq!(String::from(stored), word);
    }
}
