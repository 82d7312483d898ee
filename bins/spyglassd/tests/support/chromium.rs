//! A headless Chromium over its debugging pipe (JSON messages, each ended by a zero byte, on descriptors 3 and 4).

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: mpsc::Receiver<Value>,
    next: u64,
    session: Option<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// Opens a page at `url`, of 1000x800 pixels.
    pub fn open(folder: &Path, url: &str) -> Browser {
        let (to, from) = (folder.join("to-browser"), folder.join("from-browser"));
        let made = Command::new("mkfifo").arg(&to).arg(&from).status().unwrap();
        assert!(made.success(), "mkfifo");
        let profile = folder.join("profile");
        // The shell ties the pipes to descriptors, which std can't do safely.
        let script = "exec chromium --headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage \
                      --disable-background-networking --window-size=1000,800 --remote-debugging-pipe \
                      --user-data-dir=\"$3\" about:blank 3<\"$1\" 4>\"$2\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&to, &from, &profile])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let writing = File::options().write(true).open(&to).unwrap();
        let reading = BufReader::new(File::open(&from).unwrap());
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            for message in reading.split(0).map_while(Result::ok) {
                if send.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, to: writing, from: receive, next: 0, session: None };
        let target = browser.call("Target.createTarget", json!({ "url": url }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)["sessionId"].as_str().unwrap().to_owned();
        browser.session = Some(session);
        browser
    }

    /// One command and its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer =
                self.from.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("{method}: {e}"));
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression of JavaScript, a promise's too.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until `expression` is true; says what the page shows if it never is.
    pub fn wait(&mut self, expression: &str) {
        let end = Instant::now() + Duration::from_secs(40);
        while self.value(expression) != true {
            let text = self.value("document.body ? document.body.innerText : ''");
            assert!(Instant::now() < end, "{expression} stays untrue; the page shows: {text}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the player's video plays and its time goes on; whether the picture is another one then.
    pub fn watch(&mut self) -> bool {
        const VIDEO: &str = "document.getElementById('video')";
        self.wait(&format!("!!{VIDEO} && {VIDEO}.readyState > 2"));
        let pixels = format!(
            "(() => {{ const canvas = document.createElement('canvas'); canvas.width = 64; canvas.height = 36; \
             const context = canvas.getContext('2d'); context.drawImage({VIDEO}, 0, 0, 64, 36); \
             return Array.from(context.getImageData(0, 0, 64, 36).data).join(); }})()"
        );
        let (before, first) = (self.value(&format!("{VIDEO}.currentTime")), self.value(&pixels));
        self.wait(&format!("{VIDEO}.currentTime - {before} >= 1.5"));
        self.value(&pixels) != first
    }

    /// The page as `dark` or light systems see it.
    pub fn colours(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": value });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// What the page looks like (PNG).
    pub fn screenshot(&mut self) -> Vec<u8> {
        let result = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        base64::engine::general_purpose::STANDARD.decode(result["data"].as_str().unwrap()).unwrap()
    }
}
