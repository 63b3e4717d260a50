//! `strategy.matrix`: the rows that its axes, `include` and `exclude` make.

use serde_json::{Map, Value};

use crate::Ordered;

/// One combination of values.
pub(crate) type Row = Map<String, Value>;

/// All rows, in GitHub's order; one empty row where there is no matrix.
pub(crate) fn rows(matrix: Option<&Ordered<Value>>) -> Result<Vec<Row>, String> {
    let Some(matrix) = matrix else {
        return Ok(vec![Row::new()]);
    };
    let (mut include, mut exclude) = (Vec::new(), Vec::new());
    let mut rows = vec![Row::new()];
    let mut axes = Vec::new();
    for (key, value) in matrix.iter() {
        match key {
            "include" => include = objects(key, value)?,
            "exclude" => exclude = objects(key, value)?,
            key => {
                let values = value
                    .as_array()
                    .filter(|values| !values.is_empty())
                    .ok_or_else(|| format!("matrix.{key} is not a list of values"))?;
                rows = rows
                    .iter()
                    .flat_map(|row| values.iter().map(move |value| with(row, key, value)))
                    .collect();
                axes.push(key);
            }
        }
    }
    if axes.is_empty() {
        rows.clear();
    }
    rows.retain(|row| !exclude.iter().any(|excluded| contains(row, excluded)));
    let original = rows.clone();
    for extra in include {
        // An entry widens every row whose own values it leaves as they are; where there is none, it is a row itself.
        let fits = |row: &Row| {
            axes.iter()
                .all(|key| !extra.contains_key(*key) || extra.get(*key) == row.get(*key))
        };
        let mut widened = false;
        for (row, _) in rows.iter_mut().zip(&original).filter(|(_, own)| fits(own)) {
            row.extend(extra.clone());
            widened = true;
        }
        if !widened {
            rows.push(extra);
        }
    }
    if rows.is_empty() {
        return Err("the matrix has no row".to_owned());
    }
    Ok(rows)
}

fn with(row: &Row, key: &str, value: &Value) -> Row {
    let mut row = row.clone();
    row.insert(key.to_owned(), value.clone());
    row
}

fn contains(row: &Row, part: &Row) -> bool {
    part.iter().all(|(key, value)| row.get(key) == Some(value))
}

fn objects(key: &str, value: &Value) -> Result<Vec<Row>, String> {
    let entries = value
        .as_array()
        .map(|entries| entries.iter().filter_map(Value::as_object).cloned());
    entries
        .map(Iterator::collect)
        .ok_or_else(|| format!("matrix.{key} is not a list of mappings"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(matrix: &str) -> Value {
        let matrix: Ordered<Value> = serde_saphyr::from_str(matrix).unwrap();
        json!(rows(Some(&matrix)).unwrap())
    }

    #[test]
    fn rows_of_a_matrix() {
        let table = [
            ("{image: [a, b]}", json!([{"image": "a"}, {"image": "b"}])),
            (
                "{image: [a, b], python: [3, 4]}",
                json!([
                    {"image": "a", "python": 3}, {"image": "a", "python": 4},
                    {"image": "b", "python": 3}, {"image": "b", "python": 4},
                ]),
            ),
            (
                "{image: [a, b], exclude: [{image: b}]}",
                json!([{"image": "a"}]),
            ),
            (
                "{image: [a], include: [{image: a, gpu: 1}, {image: c}]}",
                json!([{"image": "a", "gpu": 1}, {"image": "c"}]),
            ),
            (
                "{image: [a, b], include: [{gpu: 1}]}",
                json!([{"image": "a", "gpu": 1}, {"image": "b", "gpu": 1}]),
            ),
            (
                "{include: [{image: a}, {image: b}]}",
                json!([{"image": "a"}, {"image": "b"}]),
            ),
            (
                "{cuda: [{image: a, flags: x}]}",
                json!([{"cuda": {"image": "a", "flags": "x"}}]),
            ),
        ];
        for (matrix, expected) in table {
            assert_eq!(made(matrix), expected, "{matrix}");
        }
    }

    #[test]
    fn a_matrix_without_a_row_is_an_error() {
        for matrix in [
            "{image: a}",
            "{image: []}",
            "{image: [a], exclude: [{image: a}]}",
        ] {
            let parsed: Ordered<Value> = serde_saphyr::from_str(matrix).unwrap();
            assert!(rows(Some(&parsed)).is_err(), "{matrix}");
        }
    }
}
