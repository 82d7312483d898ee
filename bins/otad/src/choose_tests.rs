//! Tests of the choice, one unmet condition at a time, with statements signed by the `minisign` crate.

use std::collections::BTreeMap;
use std::io::Cursor;

use edge::release::{Digests, Entry};
use minisign::KeyPair;

use super::*;

struct Publisher {
    pair: KeyPair,
    keys: PublicKeys,
}

impl Publisher {
    fn new(name: &str) -> Publisher {
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let path = std::env::temp_dir().join(format!("otad-choose-{}-{name}", std::process::id()));
        std::fs::write(&path, pair.pk.to_box().unwrap().to_string()).unwrap();
        let keys = PublicKeys::load(std::slice::from_ref(&path)).unwrap();
        std::fs::remove_file(path).unwrap();
        Publisher { pair, keys }
    }

    fn offer(&self, statement: &Statement) -> Offer {
        let bytes = statement.to_bytes().unwrap();
        let signature = minisign::sign(None, &self.pair.sk, Cursor::new(&bytes), None, None).unwrap();
        Offer {
            version: statement.version.clone(),
            url: "s3://x".into(),
            status_code: 200,
            md5: Some(statement.md5),
            sha256: Some(statement.sha256),
            size: Some(statement.size),
            download: Some(format!("/blob/{}", statement.sha256)),
            statement: Some(String::from_utf8(bytes).unwrap()),
            signature: Some(signature.to_string()),
        }
    }
}

fn statement(epoch: u64) -> Statement {
    let mut digests = Digests::default();
    digests.update(format!("content {epoch}").as_bytes());
    let sums = digests.finish();
    Statement {
        v: 1,
        app: "scoreboard".into(),
        version: format!("1.{epoch}"),
        env: "prod".into(),
        epoch,
        md5: sums.md5,
        sha256: sums.sha256,
        size: sums.size,
        attrs: vec!["gamer".into()],
        min_epoch: 0,
        from_epoch: 0,
        rollout: 100,
        salt: "s".into(),
        expires: None,
    }
}

fn details(offers: &[Offer]) -> Details {
    let entry = Entry { latest: offers[0].clone(), offers: offers[1..].to_vec() };
    Details(vec![("scoreboard".into(), entry)])
}

fn ask() -> Ask {
    let attributes: BTreeMap<String, String> = [("attr.gamer".to_owned(), "prod".to_owned())].into();
    Ask::new(&attributes, "aarch64").unwrap()
}

struct Scene {
    publisher: Publisher,
    installed: Option<Manifest>,
    mark: Mark,
    barred: Vec<Sha256>,
    require: bool,
    listed: bool,
    known: Vec<Known>,
    device: String,
}

impl Scene {
    fn new(name: &str) -> Scene {
        Scene {
            publisher: Publisher::new(name),
            installed: None,
            mark: Mark::default(),
            barred: vec![],
            require: true,
            listed: true,
            known: vec![],
            device: "cam-1".into(),
        }
    }

    fn install(&mut self, epoch: u64) {
        let offer = self.publisher.offer(&statement(epoch));
        let (picks, _) = self.choose(&[offer]);
        self.installed = Some(Manifest::new(vec![picks[0].item().unwrap()]).unwrap());
        self.mark.epoch = epoch;
    }

    fn choose(&self, offers: &[Offer]) -> (Vec<Pick>, Vec<Report>) {
        let facts = Facts {
            ask: &ask(),
            device: &self.device,
            now: "2026-11-27T00:00:00Z".parse().unwrap(),
            require_signature: self.require,
            keys: &self.publisher.keys,
            installed: self.installed.as_ref(),
            mark: &|_, _| self.mark,
            barred: &|_, sha256| self.barred.contains(sha256),
            kind: &|_| self.listed.then_some(Kind::File { mode: 0o755 }),
            known: &|app, offer| recall(&self.known, app, offer),
            damaged: &|_| false,
        };
        choose(&details(offers), &facts)
    }

    fn why(&self, offers: &[Offer]) -> Why {
        let (picks, reports) = self.choose(offers);
        assert!(picks.is_empty(), "{picks:?}");
        assert!(!reports[0].taken);
        reports[0].why.clone().unwrap()
    }

    fn why_of(&self, change: impl FnOnce(&mut Statement)) -> Why {
        let mut statement = statement(5);
        change(&mut statement);
        self.why(&[self.publisher.offer(&statement)])
    }
}

#[test]
fn the_highest_epoch_that_is_allowed_is_taken() {
    let mut scene = Scene::new("best");
    let offers: Vec<Offer> = [3, 7, 5].map(|epoch| scene.publisher.offer(&statement(epoch))).into();
    let (picks, reports) = scene.choose(&offers);
    assert_eq!((picks[0].epoch, picks[0].version.as_str()), (7, "1.7"));
    assert!(reports[0].taken && reports[0].why.is_none());
    scene.install(5);
    assert_eq!(scene.choose(&offers).0[0].epoch, 7);
    scene.install(7);
    assert_eq!(scene.why(&offers), Why::UpToDate);
}

#[test]
fn each_unmet_condition_has_its_name() {
    let mut scene = Scene::new("why");
    assert_eq!(
        scene.why_of(|s| s.expires = Some("2026-11-26T00:00:00Z".parse().unwrap())),
        Why::Expired("2026-11-26T00:00:00Z".parse().unwrap())
    );
    assert_eq!(scene.why_of(|s| s.rollout = 0), Why::NotInRollout { percent: 0 });
    assert!(matches!(scene.why_of(|s| s.env = "beta".into()), Why::NotAsked(_)));
    assert!(matches!(scene.why_of(|s| s.attrs = vec!["other".into()]), Why::NotAsked(_)));
    assert!(matches!(scene.why_of(|s| s.app = "other".into()), Why::NotAsked(_)));
    scene.barred.push(statement(5).sha256);
    assert_eq!(scene.why_of(|_| ()), Why::Quarantined);
    scene.barred.clear();
    scene.install(4);
    assert_eq!(scene.why_of(|s| s.epoch = 3), Why::OlderEpoch { epoch: 3, mark: 4 });
    assert_eq!(scene.why_of(|s| (s.epoch, s.from_epoch) = (9, 5)), Why::MustPassThrough { epoch: 5 });
    scene.installed = None;
    let from_nothing = Statement { from_epoch: 5, ..statement(9) };
    assert_eq!(scene.choose(&[scene.publisher.offer(&from_nothing)]).0.len(), 1, "a new device begins here");
    scene.listed = false;
    assert_eq!(scene.why_of(|_| ()), Why::NotListed);
}

#[test]
fn a_staged_release_is_taken_by_some_and_the_others_keep_the_rest() {
    let mut scene = Scene::new("staged");
    let staged = Statement { rollout: 50, ..statement(8) };
    let offers = [scene.publisher.offer(&statement(5)), scene.publisher.offer(&staged)];
    let mut taken = 0;
    for n in 0..200 {
        scene.device = format!("cam-{n}");
        let (picks, reports) = scene.choose(&offers);
        taken += usize::from(picks[0].epoch == 8);
        if picks[0].epoch == 5 {
            assert_eq!(reports[0].why, Some(Why::NotInRollout { percent: 50 }));
            assert_eq!(reports[0].offered, Some(("1.8".into(), 8)));
        }
    }
    assert!((70..=130).contains(&taken), "{taken}");
    // Lowering the percentage takes it from nobody.
    scene.install(8);
    let lowered = Statement { rollout: 0, ..statement(8) };
    assert_eq!(
        scene.why(&[scene.publisher.offer(&statement(5)), scene.publisher.offer(&lowered)]),
        Why::UpToDate
    );
}

#[test]
fn only_a_trusted_key_over_these_bytes_counts() {
    let scene = Scene::new("keys");
    let other = Publisher::new("other");
    assert!(matches!(scene.why(&[other.offer(&statement(5))]), Why::Signature(_)));
    let mut offer = scene.publisher.offer(&statement(5));
    offer.statement = offer.statement.map(|text| text.replace("1.5", "1.6"));
    assert!(matches!(scene.why(&[offer]), Why::Signature(_)));
    let mut offer = scene.publisher.offer(&statement(5));
    offer.signature = None;
    assert_eq!(scene.why(&[offer.clone()]), Why::NotSigned);
    offer.statement = None;
    assert_eq!(scene.why(&[offer]), Why::NotSigned);
    // What the details say beside the statement proves nothing.
    let mut lying = scene.publisher.offer(&statement(5));
    lying.sha256 = Some(statement(6).sha256);
    lying.size = Some(1);
    let (picks, _) = scene.choose(&[lying]);
    assert_eq!(picks[0].sums.unwrap().sha256, statement(5).sha256);
}

#[test]
fn without_signatures_versions_and_hints_are_all_there_is() {
    let mut scene = Scene::new("unsigned");
    scene.require = false;
    let plain = |version: &str, status_code| Offer {
        version: version.into(),
        url: "s3://x".into(),
        status_code,
        md5: None,
        sha256: None,
        size: None,
        download: None,
        statement: None,
        signature: None,
    };
    let (picks, _) = scene.choose(&[plain("1.0", 200)]);
    assert_eq!((picks[0].sums, picks[0].epoch, picks[0].env.as_str()), (None, 0, "prod"));
    let sums = statement(1);
    let known = |version: &str, of: &Statement| Known {
        app: "Scoreboard".into(),
        version: version.into(),
        md5: of.md5,
        sha256: of.sha256,
        size: of.size,
    };
    scene.known = vec![known("1.0", &sums)];
    let (picks, _) = scene.choose(&[plain("1.0", 304)]);
    assert_eq!(picks[0].sums.unwrap().sha256, sums.sha256);
    assert_eq!(
        scene.choose(&[plain("1.1", 304)]).0[0].sums.unwrap().sha256,
        sums.sha256,
        "the only hint sent"
    );
    scene.known.push(known("2.0", &statement(2)));
    assert_eq!(scene.choose(&[plain("1.1", 304)]).0[0].sums, None, "which of the two?");
    assert_eq!(scene.choose(&[plain("1.0", 200)]).0[0].sums, None, "the server says it differs");
    scene.barred.push(sums.sha256);
    assert_eq!(scene.why(&[plain("1.0", 304)]), Why::Quarantined);
    assert!(matches!(scene.why(&[plain("../x", 200)]), Why::Statement(_)));
    scene.mark.epoch = 1;
    assert_eq!(
        scene.why(&[plain("9", 200)]),
        Why::OlderEpoch { epoch: 0, mark: 1 },
        "no way back to unsigned"
    );
}
