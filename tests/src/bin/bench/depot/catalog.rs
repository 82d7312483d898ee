//! Questions to a catalog of 100,000 releases, none asked twice: each is looked up in SQLite.
//!
//! 20,000 apps with 5 live releases each, in 4,000 groups that an attribute selects. A question names a group and one more
//! app, and comes to six apps or seven. The rows are copies of a signed release under other names, written in one transaction:
//! their statements belong to another app, which no server looks at.

use std::process::Command;

use e2e::depot::Depot;
use e2e::env;
use e2e::scratch::Scratch;
use e2e::table::{Table, thousands};

use super::counted;
use super::load::load;

const FILL: &str = "
import sqlite3, sys
path, apps, releases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path)
db.execute('''
    INSERT INTO release SELECT 'app' || (n.value / ?2), env, n.value % ?2 + 1, 'app' || (n.value / ?2), n.value % ?2 + 1,
        state, rollout, floor, from_epoch, md5, sha256, size, url, json_array('g' || (n.value / ?2 / 5)), statement, signature,
        published
    FROM release, (WITH RECURSIVE n(value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value + 1 < ?1 * ?2)
        SELECT value FROM n) n''', (apps, releases))
db.execute('''
    INSERT INTO selects SELECT DISTINCT json_extract(attrs, '$[0]'), env, app_key, app FROM release WHERE app_key LIKE 'app%' ''')
db.commit()
print(db.execute('SELECT count(*) FROM release').fetchone()[0])
";

/// Distinct for 4000 x 20,000 requests.
const ASK: &str = "
local threads = 0
function setup(thread) thread:set('k', threads); threads = threads + 1 end
function request()
    k = k + 2
    local app = (k + math.floor(k / 20000)) % APPS
    return wrk.format('GET', string.format(
        '/package?cpuArch=none&payloadType=metadataOnly&attrg%d=prod&app%d=prod', k % (APPS / 5), app))
end
";

pub fn run() {
    println!("\nQuestions that nobody asked before, each looked up in the catalog (SQLite)\n");
    let mut table = Table::new(&[
        "releases",
        "connections",
        "questions/s",
        "p50 ms",
        "p99 ms",
        "looked up",
        "resident MB",
    ]);
    for apps in [200_u64, 20_000] {
        let scratch = Scratch::new("bench-depot");
        let depot = Depot::new(&scratch, "depot");
        depot.publish("model", "1", "prod", b"content", &[]);
        let mut fill = Command::new("python3");
        fill.arg("-c").arg(FILL).arg(depot.root.join("var/catalog.db")).arg(apps.to_string()).arg("5");
        let releases: u64 = env::run(&mut fill).trim().parse().unwrap();
        let script = scratch.write("ask.lua", ASK.replace("APPS", &apps.to_string()));
        // A small catalog has few questions: none is to be kept in memory.
        let (daemon, base) = depot.serve(&scratch, "serve", "[answers]\nbytes-max = \"64 KiB\"\n");
        for connections in [1, 64] {
            let before = counted(&daemon, "answers", "misses");
            let found = load(&base, connections, None, Some(&script));
            let looked_up = (counted(&daemon, "answers", "misses") - before) / found.requests;
            assert!(looked_up > 0.9, "{looked_up:.2} of the questions were looked up");
            table.row(&[
                thousands(releases),
                connections.to_string(),
                thousands(found.rate as u64),
                format!("{:.2}", found.p50_ms),
                format!("{:.2}", found.p99_ms),
                format!("{:.0} %", looked_up * 100.0),
                format!("{:.1}", daemon.usage().rss_kb as f64 / 1024.0),
            ]);
        }
        let answer = env::run(Command::new("curl").args([
            "-fsS",
            &format!("{base}/package?cpuArch=none&payloadType=metadataOnly&attrg1=prod&app3=prod"),
        ]));
        let apps = serde_json::from_str::<serde_json::Value>(&answer).unwrap().as_object().unwrap().len();
        assert_eq!(apps, 6, "{answer}");
    }
    println!("{}", table.text());
}
