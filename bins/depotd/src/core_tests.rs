//! Tests of the answers, over a catalog that is a list.

use edge::release::{Sums, Timestamp};

use super::*;
use crate::catalog::Error;
use crate::query;

#[derive(Default)]
struct List(Vec<Release>);

impl Catalog for List {
    fn live(&mut self, app: &str, env: &str) -> Result<Vec<Release>, Error> {
        Ok(self.0.iter().rev().filter(|r| key(&r.app) == key(app) && r.env == env).cloned().collect())
    }
    fn apps_with(&mut self, attr: &str, env: &str) -> Result<Vec<String>, Error> {
        let has = |r: &&Release| r.env == env && r.attrs.iter().any(|a| a == attr);
        Ok(self.0.iter().filter(has).map(|r| r.app.clone()).collect())
    }
    fn version(&mut self) -> Result<Option<u64>, Error> {
        Ok(Some(1))
    }
    fn content(&mut self, sha256: &edge::release::Sha256) -> Result<Option<u64>, Error> {
        let all = self.0.iter().filter_map(|r| r.sums);
        Ok(all.filter(|sums| sums.sha256 == *sha256).map(|sums| sums.size).next())
    }
    fn list(&mut self, _: Option<&str>, _: Option<&str>) -> Result<Vec<Release>, Error> {
        Ok(self.0.clone())
    }
    fn insert(&mut self, release: &Release) -> Result<(), Error> {
        self.0.push(release.clone());
        Ok(())
    }
    fn replace(&mut self, _: &Release, _: &Release) -> Result<(), Error> {
        Ok(())
    }
}

fn release(app: &str, env: &str, epoch: u64, attrs: &[&str]) -> Release {
    let mut digests = edge::release::Digests::default();
    digests.update(format!("{app} {env} {epoch}").as_bytes());
    let sums: Sums = digests.finish();
    Release {
        app: app.into(),
        version: format!("{epoch}.0"),
        env: env.into(),
        epoch,
        md5: Some(sums.md5),
        sums: Some(sums),
        url: format!("s3://b/{app}_{epoch}"),
        attrs: attrs.iter().map(|a| (*a).to_owned()).collect(),
        rollout: 100,
        from_epoch: 0,
        floor: false,
        state: State::Live,
        statement: None,
        signature: None,
        published: Timestamp(0),
    }
}

fn sample() -> List {
    List(vec![
        release("os_armv8", "prod", 1, &[]),
        release("os_armv8", "prod", 2, &[]),
        release("os_armv8", "beta", 3, &[]),
        release("scoreboard", "prod", 1, &["gamer"]),
        release("videoStreamer", "prod", 1, &["gamer", "cellular"]),
        release("videoStreamer", "beta", 2, &["gamer"]),
        release("modemFW", "prod", 1, &["cellular"]),
    ])
}

fn ask(list: &mut List, query: &str, tags: &str) -> (Vec<bool>, Answer) {
    let asked = query::parse(query).unwrap();
    let resolved = resolve(list, &asked.question).unwrap();
    let held = resolved.held(&Etags::parse([tags.as_bytes()]));
    let answer = resolved.answer(asked.payload, &held);
    (held, answer)
}

/// `app version status` of each app.
fn told(bytes: &[u8]) -> Vec<String> {
    let details = Details::parse(bytes).unwrap();
    let one = |(app, e): &(String, Entry)| format!("{app} {} {}", e.latest.version, e.latest.status_code);
    details.0.iter().map(one).collect()
}

fn metadata(list: &mut List, query: &str, tags: &str) -> Vec<String> {
    match ask(list, &format!("{query}&payloadType=metadataOnly"), tags).1 {
        Answer::Metadata(bytes) => told(&bytes),
        other => panic!("{query}: {other:?}"),
    }
}

#[test]
fn the_requests_of_the_reference() {
    let list = &mut sample();
    assert_eq!(metadata(list, "cpuArch=armv8", ""), ["os_armv8 2.0 200"]);
    assert_eq!(metadata(list, "cpuArch=ARMV8&os=BETA", ""), ["os_armv8 3.0 200"]);
    let gamer = ["os_armv8 2.0 200", "scoreboard 1.0 200", "videoStreamer 1.0 200"];
    assert_eq!(metadata(list, "cpuArch=armv8&attrGamer=prod", ""), gamer);
    let md5 = list.0[1].md5.unwrap().to_string();
    let all = ["modemFW 1.0 200", "os_armv8 2.0 304", "scoreboard 1.0 200", "videoStreamer 1.0 200"];
    assert_eq!(metadata(list, "cpuArch=armv8&attrGamer=prod&attrCellular=prod", &md5), all);
    let (_, answer) = ask(list, "cpuArch=armv8&attrGamer=prod", &md5);
    let Answer::Bundle(plan) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = plan.files.iter().map(|f| f.file_name()).collect();
    assert_eq!(names, ["scoreboard_1.0", "videoStreamer_1.0"]);
    assert!(matches!(ask(list, "cpuArch=armv8", &md5).1, Answer::NotModified));
    assert!(matches!(ask(list, "cpuArch=armv8&attrgamer=prod", "*").1, Answer::NotModified));
    assert!(matches!(ask(list, "cpuArch=mips", "*").1, Answer::Nothing));
    assert!(matches!(ask(list, "cpuArch=x&attr%27%20or%201%3D1=prod", "").1, Answer::Nothing));
}

#[test]
fn one_app_in_two_environments() {
    let list = &mut sample();
    // What names the app goes before an attribute; of attributes, the first in order.
    let named = metadata(list, "cpuArch=armv8&attrGamer=prod&VIDEOSTREAMER=beta", "");
    assert_eq!(named[2], "videoStreamer 2.0 200");
    let by_attr = metadata(list, "cpuArch=armv8&attrgamer=beta&attrcellular=prod", "");
    assert_eq!(by_attr[2], "videoStreamer 1.0 200");
}

#[test]
fn staged_releases_and_floors_are_for_those_who_ask() {
    let list = &mut sample();
    let staged = Release { rollout: 10, ..release("os_armv8", "prod", 9, &[]) };
    let floor = Release { floor: true, ..release("os_armv8", "prod", 1, &[]) };
    let paused = Release { state: State::Paused, ..release("os_armv8", "prod", 10, &[]) };
    list.0[0] = floor;
    list.0.extend([staged.clone(), paused]);
    assert_eq!(metadata(list, "cpuArch=armv8", ""), ["os_armv8 2.0 200"]);
    let query = "cpuArch=armv8&x-offers=1&payloadType=metadataOnly";
    let (_, Answer::Metadata(bytes)) = ask(list, query, "") else { panic!() };
    let details = Details::parse(&bytes).unwrap();
    let offers: Vec<&str> = details.0[0].1.offers.iter().map(|o| o.version.as_str()).collect();
    assert_eq!((details.0[0].1.latest.version.as_str(), offers), ("2.0", vec!["9.0", "1.0"]));
    // Who has all content may still not know of a release: only who knows of none is told nothing.
    let sums = list.0.iter().map(|r| r.md5.unwrap().to_string()).collect::<Vec<_>>().join(",");
    let (_, Answer::Metadata(bytes)) = ask(list, query, &sums) else { panic!() };
    assert_eq!(told(&bytes), ["os_armv8 2.0 304"]);
    let (_, Answer::Bundle(plan)) = ask(list, "cpuArch=armv8&x-offers=1", &sums) else { panic!() };
    assert!(plan.files.is_empty());
    assert!(matches!(ask(list, "cpuArch=armv8&payloadType=metadataOnly", &sums).1, Answer::NotModified));
    // An app that is staged only.
    let only = &mut List(vec![Release { app: "new".into(), ..staged }]);
    assert!(matches!(ask(only, "cpuArch=x&new=prod", "").1, Answer::Nothing));
    let query = "cpuArch=x&new=prod&x-offers=1&payloadType=metadataOnly";
    let (_, Answer::Metadata(bytes)) = ask(only, query, "") else { panic!() };
    let details = Details::parse(&bytes).unwrap();
    let (_, entry) = &details.0[0];
    assert_eq!((entry.latest.status_code, entry.offers.len(), entry.offers[0].status_code), (304, 1, 200));
    let (_, Answer::Bundle(plan)) = ask(only, "cpuArch=x&new=prod&x-offers=1", "") else { panic!() };
    assert!(plan.files.is_empty());
}

/// Whatever the order of the question and of the tags, the answer has the same bytes; and no more tags than matter.
#[test]
fn equal_questions_have_equal_answers() {
    let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let mut list = sample();
        let mut parts: Vec<&str> =
            ["attrGamer=prod", "attrCellular=prod", "scoreboard=prod", "videoStreamer=beta", "os=beta"]
                .into_iter()
                .filter(|_| rng.bool())
                .collect();
        parts.push("cpuArch=armv8");
        let mut tags: Vec<String> =
            list.0.iter().filter(|_| rng.bool()).map(|r| r.md5.unwrap().to_string()).collect();
        let first = ask(&mut list, &parts.join("&"), &tags.join(","));
        rng.shuffle(&mut parts);
        tags.extend(tags.clone());
        tags.extend((0..rng.usize(..4)).map(|n| format!("W/\"{n:032x}\"")));
        rng.shuffle(&mut tags);
        let other = ask(&mut list, &parts.join("&").to_uppercase(), &tags.join(" ,").to_uppercase());
        let same = match (&first.1, &other.1) {
            (Answer::Bundle(a), Answer::Bundle(b)) => a.id(6) == b.id(6) && a.details == b.details,
            (Answer::NotModified, Answer::NotModified) => true,
            _ => false,
        };
        assert!(same && first.0 == other.0, "seed {seed} round {round}: {first:?} {other:?}");
    }
}

#[test]
fn a_bundle_s_name_tells_its_bytes() {
    let list = &mut sample();
    let id = |list: &mut List| match ask(list, "cpuArch=armv8", "").1 {
        Answer::Bundle(plan) => plan.id(6),
        other => panic!("{other:?}"),
    };
    let first = id(list);
    assert_eq!(first, id(list));
    list.0[1].sums = None;
    assert_ne!(first, id(list));
}
