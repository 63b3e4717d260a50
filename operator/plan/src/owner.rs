//! Which of several operators serves a pool: the one that the pool's status names, for as long as it lives and selects the
//! pool.

use cudarunner_crds::OperatorStatus;
use jiff::{SignedDuration, Timestamp};

use crate::Notice;
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// An operator that lives gives a pool back within a moment of its label's change. One that was started with another
/// selector meanwhile does not know of the pool; after this time it is not waited for.
pub const GIVES_BACK_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// After a pool was taken that somebody may have served: by then the watch shows the last pods that were made for it, and
/// an operator of an older version, which served what names nobody, has seen the claim.
pub const SETTLES_IN: SignedDuration = SignedDuration::from_secs(3);

/// What is known of a pool's operators.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who serves the pool, as its status says.
    pub named: Option<&'a OperatorStatus>,
    /// This operator.
    pub own: &'a OperatorStatus,
    /// Whether an operator has served the pool before.
    pub was_served: bool,
    /// What the Lease of another one that is named says.
    pub other: Option<Other>,
}

/// Another operator, by its Lease.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Other {
    /// Whether somebody holds the Lease, and has renewed it in time: its own, which has no end without leader election.
    pub is_held: bool,
    /// Whether it was held until less than its time ago: another replica may be about to take it.
    pub was_held: bool,
    /// Whether its selector and its namespaces take in the pool.
    pub selects: bool,
    /// Since when they are known not to.
    pub selects_not_since: Option<Timestamp>,
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The pool is this operator's.
    Serve,
    /// It is to be this operator's, by its status first. Where somebody may have served it, nothing is done for a moment.
    Take {
        /// Whether that moment is waited for.
        settles: bool,
    },
    /// Another one serves it, and both select it.
    ServedByOther,
    /// Another one that selects it no more has not given it back yet.
    NotGivenBack,
}

/// Decides whose the pool is.
#[must_use]
pub fn judge(facts: Facts, now: Timestamp) -> Standing {
    let Some(named) = facts.named else {
        return Standing::Take {
            settles: facts.was_served,
        };
    };
    if named == facts.own {
        return Standing::Serve;
    }
    let other = facts.other.unwrap_or(Other {
        // What cannot be found out is no proof that nobody acts.
        is_held: true,
        selects: true,
        ..Other::default()
    });
    let is_patient = |since: Timestamp| now < since.after(GIVES_BACK_WITHIN);
    if other.selects && (other.is_held || other.was_held) {
        Standing::ServedByOther
    } else if other.is_held && other.selects_not_since.is_none_or(is_patient) {
        Standing::NotGivenBack
    } else {
        Standing::Take { settles: true }
    }
}

/// What people should hear of a pool that waits for another operator; nothing where it does not.
#[must_use]
pub fn notice(standing: Standing, named: &OperatorStatus) -> Option<Notice> {
    let (warning, reason, note) = match standing {
        Standing::ServedByOther => (
            true,
            Reason::ServedByAnotherOperator,
            format!(
                "The operator {named} serves this pool, and this one selects it, too, and leaves it alone: give the two selectors or namespaces that do not overlap"
            ),
        ),
        Standing::NotGivenBack => (
            false,
            Reason::WaitsForOperator,
            format!(
                "The operator {named} selects this pool no more, and has not given it back yet"
            ),
        ),
        Standing::Serve | Standing::Take { .. } => return None,
    };
    Some(Notice {
        warning,
        reason: reason.into(),
        note,
        about: None,
    })
}

/// What people should hear when a pool was taken that somebody may have served.
#[must_use]
pub fn taken(before: Option<&OperatorStatus>) -> Notice {
    let before = before.map_or_else(String::new, |before| {
        format!(". The operator {before} served it before, and is gone or selects it no more")
    });
    Notice {
        warning: false,
        reason: Reason::TakenOver.into(),
        note: format!("This operator serves the pool from now on{before}"),
        about: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, ago};

    fn operator(name: &str) -> OperatorStatus {
        OperatorStatus {
            namespace: "system".to_owned(),
            name: name.to_owned(),
        }
    }

    /// What follows of a pool that an operator has served or not.
    fn judged(named: Option<&str>, other: Option<Other>, served: bool) -> Standing {
        let (own, named) = (operator("own"), named.map(operator));
        let facts = Facts {
            named: named.as_ref(),
            own: &own,
            was_served: served,
            other,
        };
        judge(facts, NOW)
    }

    #[test]
    fn a_pool_that_names_nobody_is_taken_before_it_is_served() {
        for served in [true, false] {
            let take = Standing::Take { settles: served };
            assert_eq!(judged(None, None, served), take);
        }
    }

    #[test]
    fn a_pool_has_one_operator() {
        use Standing::{NotGivenBack as Wait, Serve, ServedByOther as Leave};
        let take = Standing::Take { settles: true };
        let other = |is_held, was_held, selects, since: Option<i64>| {
            Some(Other {
                is_held,
                was_held,
                selects,
                selects_not_since: since.map(ago),
            })
        };
        for (what, other, follows) in [
            ("nothing is known of the other", None, Leave),
            ("it lives", other(true, true, true, None), Leave),
            (
                "its next replica may come",
                other(false, true, true, None),
                Leave,
            ),
            ("it is gone", other(false, false, true, None), take),
            (
                "the label has moved",
                other(true, true, false, Some(1)),
                Wait,
            ),
            ("when, is not known", other(true, true, false, None), Wait),
            ("it does not know", other(true, true, false, Some(31)), take),
            (
                "it moved to no holder",
                other(false, true, false, Some(1)),
                take,
            ),
        ] {
            for served in [true, false] {
                assert_eq!(judged(Some("other"), other, served), follows, "{what}");
                assert_eq!(judged(Some("own"), other, served), Serve);
            }
        }
    }

    #[test]
    fn no_two_serve_a_pool_that_names_one() {
        let (a, b) = (operator("a"), operator("b"));
        for (held, was, selects) in [(true, true, true), (false, true, true), (true, true, false)] {
            let other = Some(Other {
                is_held: held,
                was_held: was,
                selects,
                selects_not_since: None,
            });
            let serves = |own, other| {
                let facts = Facts {
                    named: Some(&a),
                    own,
                    was_served: true,
                    other,
                };
                judge(facts, NOW) == Standing::Serve
            };
            assert!(serves(&a, None) && !serves(&b, other));
        }
    }

    #[test]
    fn who_waits_says_for_whom() {
        let named = operator("a");
        let said = |standing| notice(standing, &named).map(|n| (n.warning, n.note));
        let (warning, note) = said(Standing::ServedByOther).unwrap();
        assert!(warning && note.contains("system/a"), "{note}");
        let (warning, note) = said(Standing::NotGivenBack).unwrap();
        assert!(!warning && note.contains("system/a"), "{note}");
        assert_eq!(said(Standing::Serve), None);
        assert_eq!(said(Standing::Take { settles: true }), None);
    }
}
