//! How GitHub's limits are kept.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn signs(status: u16, headers: &[(&'static str, &'static str)], message: &str) -> Signs {
    let headers = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    Signs::read(StatusCode::from_u16(status).unwrap(), &headers, message)
}

#[test]
fn an_absurd_reset_is_no_longer_than_any_limit() {
    let longest = at(0) + LONGEST_PAUSE;
    for (reset, until) in [
        ("-5", at(60)),
        ("0", at(60)),
        ("-9223372036854775808", at(60)),
        ("999940", at(1)),
        ("999939", at(60)),
        ("9223372036854775807", longest),
        ("99999999999999999999", at(60)),
    ] {
        let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)];
        let limit = Ledger::default().note(&signs(429, &headers, ""), at(0));
        assert_eq!(limit.unwrap().until, until, "{reset}");
    }
    for (after, until) in [
        ("-5", at(60)),
        ("9223372036854775807", longest),
        ("soon", at(60)),
    ] {
        let limit = Ledger::default().note(&signs(429, &[("retry-after", after)], ""), at(0));
        assert_eq!(limit.unwrap().until, until, "{after}");
    }
}

#[test]
fn the_81st_write_of_a_minute_waits_for_the_first_to_age() {
    let mut ledger = Ledger::default();
    for second in 0..80 {
        ledger.admit(Cost::Write, at(second / 4)).unwrap();
    }
    let limit = ledger.admit(Cost::Write, at(30)).unwrap_err();
    assert_eq!(limit.until, at(60));
    ledger.admit(Cost::Read, at(30)).unwrap();
    ledger.admit(Cost::Write, at(60)).unwrap();
    assert_eq!(ledger.usage(at(60)).held_back, 1);
}

#[test]
fn registrations_are_bound_by_points_and_not_by_the_limit_on_writes() {
    let mut ledger = Ledger::default();
    for _ in 0..180 {
        ledger.admit(Cost::Registration, at(0)).unwrap();
    }
    assert!(ledger.admit(Cost::Read, at(59)).is_err());
    ledger.admit(Cost::Registration, at(60)).unwrap();
}

#[test]
fn no_window_of_a_minute_ever_holds_more_than_the_points() {
    let mut ledger = Ledger::default();
    let mut admitted = Vec::new();
    for second in 0..600 {
        for _ in 0..7 {
            if ledger.admit(Cost::Registration, at(second)).is_ok() {
                admitted.push(second);
            }
        }
    }
    for start in 0..600 {
        let within = admitted.iter().filter(|s| (start..start + 60).contains(*s));
        assert!(within.count() <= 180);
    }
    assert!(admitted.len() >= 180 * 9);
}

#[test]
fn a_pause_follows_retry_after_then_the_reset_then_a_minute() {
    for (headers, message, expected) in [
        (
            &[
                ("retry-after", "17"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1000500"),
            ][..],
            "",
            17,
        ),
        (
            &[
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1000500"),
            ],
            "",
            500,
        ),
        // A reset says nothing while requests remain.
        (
            &[
                ("x-ratelimit-remaining", "4000"),
                ("x-ratelimit-reset", "1000500"),
            ],
            "You have exceeded a secondary rate limit.",
            60,
        ),
        (&[], "You have triggered an abuse detection mechanism.", 60),
        (&[("retry-after", "999999")], "", 3_660),
        (&[("retry-after", "0")], "", 1),
    ] {
        let mut ledger = Ledger::default();
        let limit = ledger.note(&signs(403, headers, message), at(0)).unwrap();
        assert_eq!(limit.until, at(expected), "{headers:?}");
        assert_eq!(
            ledger.admit(Cost::Read, at(expected - 1)).unwrap_err(),
            limit
        );
        ledger.admit(Cost::Read, at(expected)).unwrap();
    }
}

#[test]
fn the_reset_is_read_against_the_servers_clock() {
    // The server is a day ahead of us.
    let reset = (at(86_400 + 120).as_second()).to_string();
    let date = rfc2822::to_string(&at(86_400).to_zoned(jiff::tz::TimeZone::UTC)).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("x-ratelimit-remaining", "0".parse().unwrap());
    headers.insert("x-ratelimit-reset", reset.parse().unwrap());
    headers.insert("date", date.parse().unwrap());
    let signs = Signs::read(StatusCode::TOO_MANY_REQUESTS, &headers, "");
    assert_eq!(
        Ledger::default().note(&signs, at(0)).unwrap().until,
        at(120)
    );
}

#[test]
fn a_date_as_http_writes_it_is_read() {
    assert_eq!(
        signs(200, &[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "").date,
        Some(784_111_777)
    );
}

#[test]
fn a_plain_403_is_no_limit() {
    let mut ledger = Ledger::default();
    let answer = signs(
        403,
        &[("x-ratelimit-remaining", "4999")],
        "Resource not accessible by integration",
    );
    assert_eq!(ledger.note(&answer, at(0)), None);
    ledger.admit(Cost::Read, at(0)).unwrap();
}

#[test]
fn the_last_granted_request_pauses_the_next_and_is_no_error_itself() {
    let mut ledger = Ledger::default();
    let answer = signs(
        200,
        &[
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1000010"),
        ],
        "",
    );
    assert_eq!(ledger.note(&answer, at(0)), None);
    let limit = ledger.admit(Cost::Read, at(9)).unwrap_err();
    assert_eq!((limit.until, limit.reason.contains("5000")), (at(10), true));
    assert_eq!(ledger.usage(at(9)).paused_until, Some(at(10)));
    assert_eq!(ledger.usage(at(10)).paused_until, None);
}

#[test]
fn a_shorter_pause_never_ends_a_longer_one() {
    let mut ledger = Ledger::default();
    ledger.note(&signs(429, &[("retry-after", "100")], ""), at(0));
    ledger.note(&signs(429, &[("retry-after", "5")], ""), at(1));
    assert_eq!(ledger.admit(Cost::Read, at(50)).unwrap_err().until, at(100));
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_up() {
    for step in [1, 61, 3_600, 86_400] {
        // Given a minute's points that are used up, and a limit
        let mut ledger = Ledger::default();
        for _ in 0..180 {
            ledger.admit(Cost::Registration, at(0)).unwrap();
        }
        ledger.note(&signs(429, &[("retry-after", "100")], ""), at(0));

        // When the clock is set back, then a request is sent, and all limits hold from then on
        let now = at(-step);
        assert_eq!(ledger.usage(now).paused_until, None);
        for _ in 0..180 {
            ledger.admit(Cost::Registration, now).unwrap();
        }
        let limit = ledger.admit(Cost::Read, now).unwrap_err();
        assert_eq!(limit.until, at(60 - step), "{step}");
        let limit = ledger.note(&signs(429, &[("retry-after", "9")], ""), now);
        assert_eq!(limit.unwrap().until, at(9 - step));
        assert_eq!(ledger.usage(now).paused_until, Some(at(9 - step)));
    }
}

#[tokio::test]
async fn a_pause_is_told_at_once_to_all_that_share_the_credential() {
    let budget = Budget::default();
    budget
        .note(Cost::Read, &signs(429, &[("retry-after", "100")], ""))
        .unwrap_err();
    let error = budget.enter(Cost::Read).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { .. }));
    assert_eq!(budget.usage().sent, 0);
}

#[test]
fn each_request_ends_in_one_way() {
    let budget = Budget::default();
    for (status, headers) in [
        (200, &[][..]),
        (201, &[]),
        (304, &[]),
        (302, &[]),
        (403, &[("retry-after", "1")]),
        (403, &[]),
        (429, &[]),
        (502, &[]),
    ] {
        // Limits are errors to the caller, and counted all the same.
        let _ = budget.note(Cost::Write, &signs(status, headers, ""));
    }
    budget.note_silence(Cost::Registration);
    let endings = budget.usage().endings;
    let counted: Vec<_> = endings
        .iter()
        .map(|((cost, ending), count)| (cost.word(), ending.word(), *count))
        .collect();
    assert_eq!(
        counted,
        [
            ("write", "2xx", 2),
            ("write", "304", 1),
            ("write", "3xx", 1),
            ("write", "limited", 2),
            ("write", "4xx", 1),
            ("write", "5xx", 1),
            ("registration", "none", 1),
        ]
    );
}
