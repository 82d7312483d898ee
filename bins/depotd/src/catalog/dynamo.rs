//! The catalog in a DynamoDB table that also holds the rows of the original server, as they are.
//!
//! The table's partition key is `app` (S), its sort key `env` (S). There are four kinds of rows:
//!
//! ```text
//! the original's   app scoreboard   env prod                    version url md5 deviceAttr: live, unsigned, epoch 0
//! a release        app scoreboard   env prod#00000000000000003  and the rest of `Release`; app in lower case
//! a selector       app scoreboard   env prod~gamer              deviceAttr gamer; one for each attribute, never removed
//! a content        app ~<SHA-256>   env ~scoreboard~prod#000…3  ofApp, ofEnv: where the release is; never removed
//! ```
//!
//! An index (partition key `deviceAttr`, sort key `env`) finds what an attribute selects; without one the table is
//! scanned. Selectors and contents are only hints: whether a live release has the attribute, or the content, is asked of
//! the releases.
//!
//! Invariants: an epoch is taken by a conditional write; a change is one conditional write of one row. Names and values
//! are values of the request, never part of an expression.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use edge::release::Sha256;
use serde_json::{Map, Value, json};

use super::row::{self, Row};
use super::{Catalog, Error, Release, State, key};
use crate::aws::{AwsConfig, Call, Client, Payload, Refusal};

/// Longest page of an answer, in bytes; DynamoDB gives at most 1 MB of rows.
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// How long the spellings of the original's rows are good for.
const SPELLINGS: Duration = Duration::from_secs(300);

/// A table.
#[derive(Debug)]
pub struct Dynamo {
    client: Client,
    origin: String,
    host: String,
    table: String,
    index: Option<String>,
    /// The original's rows are found by their exact spelling: lower case to what there is.
    spellings: BTreeMap<String, BTreeSet<String>>,
    scanned: Option<Instant>,
}

impl Dynamo {
    /// The catalog in the table; nothing is asked yet. `origin` and `host` are DynamoDB's.
    ///
    /// # Errors
    /// [`Error`]: the certificates to trust can't be read.
    pub fn open(
        aws: &AwsConfig,
        (origin, host): (String, String),
        table: String,
        index: Option<String>,
    ) -> Result<Self, Error> {
        let failed = |error: edge::aws::tls::Error| Error::Service {
            table: table.clone(),
            why: edge::log::chain(&error),
        };
        let client = Client::new(aws, origin.starts_with("http://")).map_err(failed)?;
        Ok(Self { client, origin, host, table, index, spellings: BTreeMap::new(), scanned: None })
    }

    fn call(&mut self, action: &str, request: &Value) -> Result<Value, Refusal> {
        let body = request.to_string();
        let target = format!("DynamoDB_20120810.{action}");
        let mut response = self.client.send(Call {
            method: "POST",
            service: "dynamodb",
            origin: &self.origin,
            host: &self.host,
            path: "/",
            query: &[],
            headers: &[("content-type", "application/x-amz-json-1.0"), ("x-amz-target", &target)],
            payload: Payload::Bytes(body.as_bytes()),
            sha256: &edge::text::sha256_hex(body.as_bytes()),
        })?;
        let body = response.body_mut().with_config().limit(PAGE_BYTES_MAX).read_to_vec();
        let garbled = |why: String| Refusal { status: 1, code: String::new(), why };
        let body = body.map_err(|error| garbled(format!("the answer breaks off: {error}")))?;
        serde_json::from_slice(&body).map_err(|error| garbled(format!("the answer is no JSON: {error}")))
    }

    fn failed(&self, what: &str, refusal: &Refusal) -> Error {
        let hint = match (refusal.status, refusal.code.as_str()) {
            (_, "ResourceNotFoundException") => "make the table (or the index), or correct catalog.at",
            (_, "ValidationException") => {
                "the table needs the partition key app (S) and the sort key env (S), its index deviceAttr (S) and env (S)"
            }
            (400 | 401 | 403, "AccessDeniedException") => {
                "the credentials need dynamodb:Query, Scan, GetItem and PutItem on the table and its index"
            }
            _ => "",
        };
        let colon = if hint.is_empty() { "" } else { ": " };
        let why = format!("cannot {what}: {}{colon}{hint}", refusal.why);
        Error::Service { table: format!("dynamodb:{} ({})", self.table, self.origin), why }
    }

    /// All pages of a Query or a Scan.
    fn all(&mut self, action: &'static str, mut request: Value) -> Result<Vec<Row>, Error> {
        request["TableName"] = json!(self.table);
        let mut rows = Vec::new();
        loop {
            let mut page =
                self.call(action, &request).map_err(|r| self.failed(&format!("do a {action}"), &r))?;
            if let Some(Value::Array(items)) = page.get_mut("Items").map(Value::take) {
                rows.extend(items.into_iter().filter_map(|item| match item {
                    Value::Object(item) => Some(item),
                    _ => None,
                }));
            }
            match page.get_mut("LastEvaluatedKey").map(Value::take) {
                Some(from) if from.is_object() => request["ExclusiveStartKey"] = from,
                _ => return Ok(rows),
            }
        }
    }

    /// The app's rows whose sort key begins with `prefix`, the highest first.
    fn query(&mut self, app: &str, prefix: &str, consistent: bool) -> Result<Vec<Row>, Error> {
        let (expression, mut values) = ("app = :app", json!({ ":app": { "S": app } }));
        // An empty value is refused by DynamoDB.
        let expression = match prefix {
            "" => expression.to_owned(),
            prefix => {
                values[":env"] = json!({ "S": prefix });
                format!("{expression} AND begins_with(env, :env)")
            }
        };
        let request = json!({
            "KeyConditionExpression": expression, "ExpressionAttributeValues": values,
            "ScanIndexForward": false, "ConsistentRead": consistent,
        });
        self.all("Query", request)
    }

    /// How the original's rows spell the app: as it was asked for, and otherwise.
    fn spelled(&mut self, app: &str) -> Result<BTreeSet<String>, Error> {
        if self.scanned.is_none_or(|at| at.elapsed() > SPELLINGS) {
            let rows = self.all("Scan", json!({ "ProjectionExpression": "app" }))?;
            self.spellings.clear();
            let names = rows.iter().filter_map(|row| row::text(row, "app"));
            for name in names.filter(|name| !name.starts_with('~')) {
                self.spellings.entry(key(name)).or_default().insert(name.to_owned());
            }
            self.scanned = Some(Instant::now());
        }
        let mut all = self.spellings.get(&key(app)).cloned().unwrap_or_default();
        all.extend([app.to_owned(), key(app)]);
        Ok(all)
    }

    /// The original's row of the app in the environment, however it spells the app.
    fn original(&mut self, app: &str, env: &str) -> Result<Option<Release>, Error> {
        for app in self.spelled(app)? {
            if let Some(release) = self.get(&app, env)? {
                return Ok(Some(release));
            }
        }
        Ok(None)
    }

    /// The release with these keys.
    fn get(&mut self, app: &str, env: &str) -> Result<Option<Release>, Error> {
        let request = json!({
            "TableName": self.table, "Key": { "app": { "S": app }, "env": { "S": env } },
        });
        let answer = self.call("GetItem", &request).map_err(|r| self.failed("read a row", &r))?;
        match answer.get("Item") {
            Some(Value::Object(item)) => row::release(item),
            _ => Ok(None),
        }
    }

    fn put(&mut self, item: Row, condition: Option<(&str, Value)>) -> Result<bool, Error> {
        let mut request = json!({ "TableName": self.table, "Item": item });
        if let Some((expression, values)) = condition {
            request["ConditionExpression"] = json!(expression);
            if expression.contains("#state") {
                request["ExpressionAttributeNames"] = json!({ "#state": "state" });
            }
            if values.as_object().is_some_and(|values| !values.is_empty()) {
                request["ExpressionAttributeValues"] = values;
            }
        }
        match self.call("PutItem", &request) {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.code == "ConditionalCheckFailedException" => Ok(false),
            Err(refusal) => Err(self.failed("write a row", &refusal)),
        }
    }

    /// Rows that may be selected by the attribute: app and spelling.
    fn candidates(&mut self, attr: &str, env: &str) -> Result<BTreeSet<String>, Error> {
        let values = json!({ ":attr": { "S": attr }, ":env": { "S": env } });
        let rows = match self.index.clone() {
            Some(index) => {
                let condition = "deviceAttr = :attr AND begins_with(env, :env)";
                let request = json!({
                    "IndexName": index, "KeyConditionExpression": condition, "ExpressionAttributeValues": values,
                });
                self.all("Query", request)?
            }
            None => {
                let filter = "attribute_exists(deviceAttr) AND begins_with(env, :env)";
                let values = json!({ ":env": { "S": env } });
                self.all("Scan", json!({ "FilterExpression": filter, "ExpressionAttributeValues": values }))?
            }
        };
        let wanted = [env.to_owned(), row::selector(env, attr)];
        let selects = |row: &&Row| {
            row::text(row, "env").is_some_and(|env| wanted.iter().any(|wanted| wanted == env))
                && row::attrs(row, "deviceAttr").iter().any(|found| found == attr)
        };
        Ok(rows.iter().filter(selects).filter_map(|row| row::text(row, "app").map(str::to_owned)).collect())
    }
}

/// What a server needs of these: from the newest for everybody on, and floors below.
fn needed(mut live: Vec<Release>) -> Vec<Release> {
    live.retain(|release| release.state == State::Live);
    live.sort_by_key(|release| std::cmp::Reverse(release.epoch));
    let everybody = live.iter().find(|release| release.rollout >= 100).map_or(0, |release| release.epoch);
    live.retain(|release| release.epoch >= everybody || release.floor);
    live
}

impl Catalog for Dynamo {
    fn live(&mut self, app: &str, env: &str) -> Result<Vec<Release>, Error> {
        let rows = self.query(&key(app), &row::sort_prefix(env), false)?;
        let releases = rows.iter().filter_map(|item| row::release(item).transpose());
        let mut live = needed(releases.collect::<Result<_, _>>()?);
        if !live.iter().any(|release| release.rollout >= 100) {
            live.extend(self.original(app, env)?.filter(|release| release.state == State::Live));
        }
        Ok(live)
    }

    fn apps_with(&mut self, attr: &str, env: &str) -> Result<Vec<String>, Error> {
        let mut apps = BTreeMap::new();
        for app in self.candidates(attr, env)? {
            // All live ones count, not only those that a server needs.
            let rows = self.query(&key(&app), &row::sort_prefix(env), false)?;
            let mut releases: Vec<Release> =
                rows.iter().filter_map(|item| row::release(item).transpose()).collect::<Result<_, _>>()?;
            let selects = |r: &&Release| r.state == State::Live && r.attrs.iter().any(|a| a == attr);
            // The original's row is asked for only where it can make a difference.
            if !releases.iter().any(|r| selects(&r)) {
                releases.extend(self.original(&app, env)?);
            }
            if let Some(release) = releases.iter().find(selects) {
                apps.insert(key(&release.app), release.app.clone());
            }
        }
        Ok(apps.into_values().collect())
    }

    fn version(&mut self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// One query, and one read for each release that has the content until one is served.
    fn content(&mut self, sha256: &Sha256) -> Result<Option<u64>, Error> {
        for row in self.query(&row::content_key(sha256), "", false)? {
            let (Some(app), Some(env)) = (row::text(&row, "ofApp"), row::text(&row, "ofEnv")) else {
                continue;
            };
            if let Some(Release { sums: Some(sums), state: State::Live | State::Paused, .. }) =
                self.get(app, env)?
                && sums.sha256 == *sha256
            {
                return Ok(Some(sums.size));
            }
        }
        Ok(None)
    }

    fn list(&mut self, app: Option<&str>, env: Option<&str>) -> Result<Vec<Release>, Error> {
        let rows = match app {
            None => self.all("Scan", json!({ "ConsistentRead": true }))?,
            Some(app) => {
                let mut rows = Vec::new();
                for app in self.spelled(app)? {
                    rows.extend(self.query(&app, env.unwrap_or(""), true)?);
                }
                rows
            }
        };
        let releases = rows.iter().filter_map(|item| row::release(item).transpose());
        let mut releases: Vec<Release> = releases.collect::<Result<_, _>>()?;
        releases.retain(|release| env.is_none_or(|env| release.env == env));
        let order = |r: &Release| (key(&r.app), r.env.clone(), std::cmp::Reverse(r.epoch));
        releases.sort_by_key(order);
        Ok(releases)
    }

    fn insert(&mut self, release: &Release) -> Result<(), Error> {
        for attr in &release.attrs {
            self.put(row::select(release, attr), None)?;
        }
        if let Some(content) = row::content(release) {
            self.put(content, None)?;
        }
        let done = self.put(row::item(release), Some(("attribute_not_exists(app)", json!({}))))?;
        let Release { app, env, epoch, .. } = release;
        if done { Ok(()) } else { Err(Error::Taken { app: app.clone(), env: env.clone(), epoch: *epoch }) }
    }

    fn replace(&mut self, was: &Release, now: &Release) -> Result<(), Error> {
        let mut values = Map::new();
        values.insert(":state".into(), json!({ "S": was.state.name() }));
        // The original's rows have no state: they are live.
        let state = match was.state {
            State::Live => "(#state = :state OR attribute_not_exists(#state))",
            _ => "#state = :state",
        };
        let statement = match &was.statement {
            Some(statement) => {
                values.insert(":statement".into(), json!({ "S": statement }));
                "statement = :statement"
            }
            None => "attribute_not_exists(statement)",
        };
        let condition = format!("attribute_exists(app) AND {state} AND {statement}");
        for attr in &now.attrs {
            if now.epoch > 0 && !was.attrs.contains(attr) {
                self.put(row::select(now, attr), None)?;
            }
        }
        if now.sums != was.sums
            && let Some(content) = row::content(now)
        {
            self.put(content, None)?;
        }
        if self.put(row::item(now), Some((&condition, Value::Object(values))))? {
            Ok(())
        } else {
            Err(Error::Changed(was.title()))
        }
    }

    fn damage(&mut self) -> Result<Vec<String>, Error> {
        let request = json!({ "TableName": self.table });
        let table = self.call("DescribeTable", &request).map_err(|r| self.failed("look at the table", &r))?;
        let keys = |schema: &Value| -> Vec<String> {
            let name = |key: &Value| key["AttributeName"].as_str().unwrap_or_default().to_owned();
            schema.as_array().into_iter().flatten().map(name).collect()
        };
        let mut found = Vec::new();
        if keys(&table["Table"]["KeySchema"]) != ["app", "env"] {
            found.push(format!("the keys of {} are not app and env", self.table));
        }
        if let Some(index) = &self.index {
            let indices = table["Table"]["GlobalSecondaryIndexes"].as_array().cloned().unwrap_or_default();
            let ours = indices.iter().find(|i| i["IndexName"].as_str() == Some(index));
            if ours.is_none_or(|ours| keys(&ours["KeySchema"]) != ["deviceAttr", "env"]) {
                found.push(format!("there is no index {index} with the keys deviceAttr and env"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
#[path = "dynamo_tests.rs"]
mod tests;
