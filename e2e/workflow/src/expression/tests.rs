use serde_json::json;

use super::*;

fn contexts() -> Value {
    json!({
        "matrix": {"image": "cuda-12", "n": 2, "cuda": {"flags": "-O2"}, "list": ["a", "B"]},
        "env": {"NAME": "value", "EMPTY": ""},
        "github": {"ref": "refs/heads/main", "actor": "octocat"},
        "steps": {"build": {"outcome": "failure", "outputs": {"path": "/x"}}},
    })
}

#[test]
fn texts() {
    let table = [
        ("nothing here", "nothing here"),
        ("${{ matrix.image }}", "cuda-12"),
        ("a ${{matrix.n}} b ${{ env.NAME }}.", "a 2 b value."),
        ("${{ matrix.cuda.flags }}", "-O2"),
        ("${{ matrix['image'] }}", "cuda-12"),
        ("${{ matrix.list[1] }}", "B"),
        ("${{ steps.build.outputs.path }}", "/x"),
        // What is not there is empty
        ("<${{ env.NOT_THERE }}>", "<>"),
        ("<${{ steps.other.outputs.x }}>", "<>"),
        ("${{ runner.temp }}", ""),
        ("${{ matrix.n == 2 && 'two' || 'more' }}", "two"),
        ("${{ matrix.n == 3 && 'three' || 'other' }}", "other"),
        ("${{ 'it''s' }}", "it's"),
        ("${{ format('{0}-{1}', matrix.image, 1.5) }}", "cuda-12-1.5"),
        ("${{ join(matrix.list, '+') }}", "a+B"),
        ("${{ toJSON(matrix.n) }}", "2"),
        ("${{ contains(matrix.list, 'b') }}", "true"),
        ("${{ startsWith(github.ref, 'refs/HEADS') }}", "true"),
        ("${{ matrix.cuda }}", "Object"),
        ("${{ !env.EMPTY }}", "true"),
    ];
    let contexts = contexts();
    for (written, expected) in table {
        let made = render(written, &Scope::new(&contexts));
        assert_eq!(made.as_deref(), Ok(expected), "{written}");
    }
}

#[test]
fn conditions() {
    use Status::{Cancelled, Failure, Success};
    let table = [
        ("", [true, false, false]),
        ("always()", [true, true, true]),
        ("success()", [true, false, false]),
        ("failure()", [false, true, false]),
        ("cancelled()", [false, false, true]),
        ("!cancelled()", [true, true, false]),
        ("${{ always() }}", [true, true, true]),
        // Without a status function, success() is meant, too
        ("matrix.n > 1", [true, false, false]),
        ("matrix.n > 2", [false, false, false]),
        ("false", [false, false, false]),
        ("steps.build.outcome == 'Failure'", [true, false, false]),
        (
            "always() && steps.build.outcome != 'failure'",
            [false, false, false],
        ),
        ("failure() || success()", [true, true, false]),
        (
            "(failure() || cancelled()) && matrix.n <= 2",
            [false, true, true],
        ),
        ("${{ failure() }} ", [false, true, false]),
    ];
    let contexts = contexts();
    for (written, expected) in table {
        let met = [Success, Failure, Cancelled]
            .map(|status| condition(Some(written), &Scope::new(&contexts).status(status)).unwrap());
        assert_eq!(met, expected, "{written}");
    }
    assert_eq!(condition(None, &Scope::new(&contexts)), Ok(true));
}

#[test]
fn what_is_not_known_is_named() {
    let table = [
        ("${{ vars.x }}", "Unrecognized named-value: 'vars'"),
        ("${{ needs.a.result }}", "Unrecognized named-value: 'needs'"),
        (
            "${{ hashFiles('a') }}",
            "Unrecognized function: 'hashFiles'",
        ),
        ("${{ always(1) }}", "'always' has another number"),
        ("${{ matrix. }}", "Unexpected symbol"),
        ("${{ 'open }}", "Unexpected symbol"),
        ("${{ 1 + 1 }}", "Unexpected symbol: '+'"),
        ("${{ matrix.* }}", "Unexpected symbol: '*'"),
        ("${{ matrix.x", "not closed"),
        ("${{ }}", "Unexpected symbol: ''"),
    ];
    let contexts = contexts();
    for (written, expected) in table {
        let error = check(written).unwrap_err();
        assert!(error.to_string().contains(expected), "{written}: {error}");
        assert_eq!(render(written, &Scope::new(&contexts)), Err(error));
    }
}
