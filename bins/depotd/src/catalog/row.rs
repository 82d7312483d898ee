//! Rows of the DynamoDB table: what each kind looks like. Pure functions.

use std::str::FromStr;

use edge::release::{Md5, Sha256, Sums, Timestamp};
use serde_json::{Map, Value, json};

use super::{Error, Release, State, key};

/// A row: the names of its attributes, and DynamoDB's typed values.
pub type Row = Map<String, Value>;

/// Before what the sort keys of the releases in `env` count.
pub fn sort_prefix(env: &str) -> String {
    format!("{env}#")
}

/// The sort key of a selector. No name holds `~` or `#`.
pub fn selector(env: &str, attr: &str) -> String {
    format!("{env}~{attr}")
}

/// An attribute's text.
pub fn text<'r>(row: &'r Row, name: &str) -> Option<&'r str> {
    row.get(name)?.get("S")?.as_str()
}

fn number<N: FromStr>(row: &Row, name: &str) -> Option<N> {
    row.get(name)?.get("N")?.as_str()?.parse().ok()
}

/// Several texts: one (S), a set (SS) or a list (L); in lower case, without the `attr` that queries have before them.
pub fn attrs(row: &Row, name: &str) -> Vec<String> {
    let Some(value) = row.get(name) else { return Vec::new() };
    let texts: Vec<&str> = if let Some(text) = value.get("S").and_then(Value::as_str) {
        vec![text]
    } else if let Some(set) = value.get("SS").and_then(Value::as_array) {
        set.iter().filter_map(Value::as_str).collect()
    } else {
        let list = value.get("L").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|one| one.get("S")?.as_str()).collect()
    };
    let plain = |text: &str| {
        let lower = text.to_ascii_lowercase();
        lower.strip_prefix("attr").filter(|rest| !rest.is_empty()).map_or(lower.clone(), str::to_owned)
    };
    let mut attrs: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).map(plain).collect();
    attrs.sort();
    attrs.dedup();
    attrs
}

/// A release, or a row of the original's; `None`: a selector, or a row about a content.
///
/// # Errors
/// [`Error::Row`] names the row and the attribute.
pub fn release(row: &Row) -> Result<Option<Release>, Error> {
    let (app, sort) = (text(row, "app").unwrap_or_default(), text(row, "env").unwrap_or_default());
    let bad = |why: &str| Error::Row { row: format!("{app} {sort}"), why: why.to_owned() };
    if sort.contains('~') {
        return Ok(None);
    }
    let version = text(row, "version").ok_or_else(|| bad("it has no version"))?.to_owned();
    let md5: Option<Md5> = text(row, "md5").and_then(|md5| md5.parse().ok());
    let state = text(row, "state").map_or(Ok(State::Live), str::parse).map_err(|why: String| bad(&why))?;
    let url = text(row, "url").unwrap_or_default().to_owned();
    let Some((env, _)) = sort.split_once('#') else {
        return Ok(Some(Release {
            app: app.to_owned(),
            version,
            env: sort.to_owned(),
            epoch: 0,
            md5,
            sums: None,
            url,
            attrs: attrs(row, "deviceAttr"),
            rollout: 100,
            from_epoch: 0,
            floor: false,
            state,
            statement: None,
            signature: None,
            published: Timestamp(0),
        }));
    };
    let sums = match (md5, text(row, "sha256").and_then(|t| t.parse().ok()), number(row, "size")) {
        (Some(md5), Some(sha256), Some(size)) => Some(Sums { sha256, md5, size }),
        _ => None,
    };
    Ok(Some(Release {
        app: text(row, "name").unwrap_or(app).to_owned(),
        version,
        env: env.to_owned(),
        epoch: number(row, "epoch").ok_or_else(|| bad("it has no epoch"))?,
        md5,
        sums,
        url,
        attrs: exactly(row),
        rollout: number(row, "rollout").ok_or_else(|| bad("it has no rollout"))?,
        from_epoch: number(row, "fromEpoch").unwrap_or(0),
        floor: row.get("floor").and_then(|v| v.get("BOOL")?.as_bool()).unwrap_or(false),
        state,
        statement: text(row, "statement").map(str::to_owned),
        signature: text(row, "signature").map(str::to_owned),
        published: Timestamp(number(row, "published").unwrap_or(0)),
    }))
}

/// The attributes of a release of ours, as they were published.
fn exactly(row: &Row) -> Vec<String> {
    let list = row.get("attrs").and_then(|v| v.get("L")?.as_array());
    list.into_iter().flatten().filter_map(|one| Some(one.get("S")?.as_str()?.to_owned())).collect()
}

/// The row of a release. Of the original's (epoch 0) the state is all that is added.
pub fn item(release: &Release) -> Row {
    let mut row = Row::new();
    let mut text = |name: &str, value: &str| row.insert(name.to_owned(), json!({ "S": value }));
    text("version", &release.version);
    text("url", &release.url);
    text("state", release.state.name());
    if let Some(md5) = release.md5 {
        text("md5", &md5.to_string());
    }
    if release.epoch == 0 {
        text("app", &release.app);
        text("env", &release.env);
        if let [attr] = release.attrs.as_slice() {
            text("deviceAttr", attr);
        } else if !release.attrs.is_empty() {
            row.insert("deviceAttr".into(), json!({ "SS": release.attrs }));
        }
        return row;
    }
    text("app", &key(&release.app));
    text("env", &format!("{}{:017}", sort_prefix(&release.env), release.epoch));
    text("name", &release.app);
    for (name, value) in [("statement", &release.statement), ("signature", &release.signature)] {
        if let Some(value) = value {
            text(name, value);
        }
    }
    if let Some(sums) = release.sums {
        text("sha256", &sums.sha256.to_string());
    }
    let mut number = |name: &str, value: String| row.insert(name.to_owned(), json!({ "N": value }));
    if let Some(sums) = release.sums {
        number("size", sums.size.to_string());
    }
    number("epoch", release.epoch.to_string());
    number("rollout", release.rollout.to_string());
    number("fromEpoch", release.from_epoch.to_string());
    number("published", release.published.0.to_string());
    row.insert("floor".into(), json!({ "BOOL": release.floor }));
    let attrs: Vec<Value> = release.attrs.iter().map(|attr| json!({ "S": attr })).collect();
    row.insert("attrs".into(), json!({ "L": attrs }));
    row
}

/// The row by which the attribute finds the app.
pub fn select(release: &Release, attr: &str) -> Row {
    let mut row = Row::new();
    row.insert("app".into(), json!({ "S": key(&release.app) }));
    row.insert("env".into(), json!({ "S": selector(&release.env, attr) }));
    row.insert("deviceAttr".into(), json!({ "S": attr }));
    row
}

/// Under which partition key the rows about a content are. No name begins with `~`.
pub fn content_key(sha256: &Sha256) -> String {
    format!("~{sha256}")
}

/// The row by which a content finds the release: it tells where the release's own row is. `None`: there is no content.
pub fn content(release: &Release) -> Option<Row> {
    let (of, sums) = (item(release), release.sums?);
    let (app, env) = (text(&of, "app")?.to_owned(), text(&of, "env")?.to_owned());
    let mut row = Row::new();
    let sort = format!("~{app}~{env}");
    for (name, value) in [("app", content_key(&sums.sha256)), ("env", sort), ("ofApp", app), ("ofEnv", env)] {
        row.insert(name.to_owned(), json!({ "S": value }));
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sqlite::tests::sample;

    fn row(json: Value) -> Row {
        match json {
            Value::Object(row) => row,
            _ => Row::new(),
        }
    }

    #[test]
    fn a_release_comes_back() {
        let mut all = sample("videoStreamer", "prod", 3, &["a", "b"]);
        assert_eq!(release(&item(&all)).unwrap(), Some(all.clone()));
        assert_eq!(item(&all)["env"]["S"], "prod#00000000000000003");
        (all.sums, all.md5, all.statement, all.state) = (None, None, None, State::Paused);
        assert_eq!(release(&item(&all)).unwrap(), Some(all.clone()));
        assert_eq!(release(&select(&all, "a")).unwrap(), None);
    }

    #[test]
    fn a_row_of_the_original_is_a_live_unsigned_release() {
        let original = row(json!({
            "app": { "S": "scoreboard" }, "env": { "S": "prod" }, "version": { "S": "1.0.0" },
            "url": { "S": "s3://b/scoreboard_1.0.0" }, "md5": { "S": "900150983CD24FB0D6963F7D28E17F72" },
            "deviceAttr": { "S": "attrGamer" },
        }));
        let found = release(&original).unwrap().unwrap();
        assert_eq!((found.state, found.epoch, found.rollout, found.sums), (State::Live, 0, 100, None));
        assert_eq!((found.attrs.as_slice(), found.signature.as_ref()), (&["gamer".to_owned()][..], None));
        let paused = Release { state: State::Paused, ..found };
        assert_eq!(release(&item(&paused)).unwrap(), Some(paused));
        assert!(release(&row(json!({ "app": { "S": "x" }, "env": { "S": "prod" } }))).is_err());
    }
}
