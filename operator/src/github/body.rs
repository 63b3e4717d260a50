//! Forms of answers, within bounds: each answer has a longest length, a list has a most of items, and a text has an end.
//!
//! What they may take of memory together: `room`.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A page of a hundred jobs or runs is some 2 MiB.
pub(super) const LONGEST_ANSWER: usize = 4 * 1024 * 1024;
/// The Actions service lists all runners of a scope at once: ten thousand are some 2 MiB.
pub(super) const LONGEST_LIST: usize = 8 * 1024 * 1024;
/// A refusal is a few sentences; of more, only this much is read.
pub(super) const LONGEST_REFUSAL: usize = 64 * 1024;
/// What is kept as it is, such as a token, is a few KiB.
pub(super) const LONGEST_OF_TOKENS: usize = 128 * 1024;
/// GitHub's longest page.
pub(super) const PER_PAGE: usize = 100;
/// More labels than this no runner or job has.
pub(super) const MOST_LABELS: usize = 200;
/// The names under which GitHub's answers hold their lists.
const LISTS: [&str; 5] = [
    "jobs",
    "workflow_runs",
    "check_runs",
    "runner_groups",
    "runners",
];

/// A list of at most `MOST` items. A longer one is refused before it is built.
#[derive(Debug)]
pub(super) struct AtMost<T, const MOST: usize>(pub(super) Vec<T>);

impl<T, const MOST: usize> Default for AtMost<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_seq(Items::<T, MOST>(PhantomData))
            .map(Self)
    }
}

struct Items<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element()? {
            if read.len() == MOST {
                return Err(A::Error::custom(format_args!("more than {MOST} items")));
            }
            read.push(item);
        }
        Ok(read)
    }
}

/// Longer than any name, label or address of GitHub's.
const LONGEST_TEXT: usize = 1024;
/// Longer than any name of a runner: those are kept in numbers.
const LONGEST_NAME: usize = 256;

/// A text that is kept as it is. One of absurd length is refused.
#[derive(Debug, Default)]
pub(super) struct Short(pub(super) String);

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > LONGEST_TEXT {
            return Err(D::Error::custom("a text of absurd length"));
        }
        Ok(Self(text))
    }
}

/// For fields: see [`Short`].
pub(super) fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Short::deserialize(deserializer).map(|text| text.0)
}

/// For names of runners.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > LONGEST_NAME {
        return Err(D::Error::custom("a name of absurd length"));
    }
    Ok(text)
}

/// For fields that may be null: see [`Short`].
pub(super) fn short_or_none<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Short>::deserialize(deserializer)?.map(|text| text.0))
}

/// For fields whose null is as good as an empty text: see [`Short`].
pub(super) fn short_or_empty<'de, D: Deserializer<'de>>(de: D) -> Result<String, D::Error> {
    Ok(short_or_none(de)?.unwrap_or_default())
}

/// The same for tokens, and for addresses that hold some.
pub(super) fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// For labels: see [`Short`] and [`AtMost`].
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let labels = AtMost::<Short, MOST_LABELS>::deserialize(deserializer)?;
    Ok(labels.0.into_iter().map(|label| label.0).collect())
}

/// A page of a list, as GitHub gives it: the items alone, or an object that holds them and says how many there are.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) total: Option<usize>,
    pub(super) items: Vec<T>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Page<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PageOf(PhantomData))
    }
}

struct PageOf<T>(PhantomData<T>);

/// A number of things, which GitHub's description calls a number and not an integer.
#[derive(Deserialize)]
struct Count(#[serde(deserialize_with = "whole")] usize);

/// For such fields.
pub(super) fn whole<'de, D, N>(deserializer: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: std::str::FromStr,
{
    let text = serde_json::Number::deserialize(deserializer)?.to_string();
    let digits = text.strip_suffix(".0").unwrap_or(&text);
    let number = digits.parse();
    number.map_err(|_| D::Error::custom("no whole number"))
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for PageOf<T> {
    type Value = Page<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a page of at most {PER_PAGE} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Page<T>, A::Error> {
        let items = Items::<T, PER_PAGE>(PhantomData).visit_seq(items)?;
        Ok(Page { total: None, items })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page<T>, A::Error> {
        let (mut total, mut items) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            if key == "total_count" {
                total = Some(map.next_value::<Count>()?.0);
            } else if LISTS.contains(&key.as_str()) {
                items = Some(map.next_value::<AtMost<T, PER_PAGE>>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        let items = items.ok_or_else(|| A::Error::custom("no list"))?;
        Ok(Page { total, items })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_list_than_was_asked_for_is_refused() {
        let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        let page = |text: &str| serde_json::from_str::<Page<u8>>(text);
        assert_eq!(page(&list(100)).unwrap().items.len(), 100);
        assert!(page(&list(101)).is_err());
        let object = |count| {
            format!(
                r#"{{"total_count": 7, "more": {{}}, "jobs": {}}}"#,
                list(count)
            )
        };
        assert_eq!(page(&object(2)).unwrap().total, Some(7));
        assert!(page(&object(883_000)).is_err());
        assert!(page(r#"{"total_count": 7}"#).is_err(), "no list at all");
    }
}
