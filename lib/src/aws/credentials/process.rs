//! `credential_process`: runs the command and reads the JSON it prints.
//!
//! No shell: the command line is split at blanks, with quotes and backslashes as in a shell. The process is killed
//! after a minute. Its standard output is never shown; of its standard error the first line is, since it says why.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Credentials;
use super::answer::{Shape, parse};

const TIMEOUT: Duration = Duration::from_secs(60);
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn run(command: &str, source: &str) -> Result<Credentials, String> {
    run_within(command, source, TIMEOUT)
}

fn run_within(command: &str, source: &str, timeout: Duration) -> Result<Credentials, String> {
    let words = split(command).ok_or("has a quote that is not closed")?;
    let (program, arguments) = words.split_first().ok_or("is empty")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("can't be started ({program}): {error}"))?;
    // Both pipes are read by threads of their own, so that neither fills up and the deadline holds.
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let deadline = Instant::now() + timeout;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // It can only fail to be killed by having ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("({program}) was killed: no end after {} s", timeout.as_secs()));
            }
            Err(error) => return Err(format!("({program}) can't be waited for: {error}")),
        }
    };
    // A grandchild may hold the pipes open: whoever printed credentials has done so by now.
    let wait = Duration::from_secs(1);
    let out = out.recv_timeout(wait).map_err(|_| format!("({program}) ended but left its output open"))?;
    if !status.success() {
        let err = err.recv_timeout(wait).unwrap_or_default();
        let first =
            String::from_utf8_lossy(&err).lines().next().unwrap_or("").chars().take(200).collect::<String>();
        return Err(format!("({program}) failed with {status}: {first}"));
    }
    let text =
        std::str::from_utf8(&out).map_err(|_| format!("({program}) printed something that is not UTF-8"))?;
    parse(text, Shape::Process, source).map_err(|why| format!("({program}): {why}"))
}

fn reader<R: std::io::Read + Send + 'static>(
    pipe: Option<R>,
) -> std::sync::mpsc::Receiver<zeroize::Zeroizing<Vec<u8>>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = zeroize::Zeroizing::new(Vec::new());
        if let Some(pipe) = pipe {
            // What could be read before an error is judged by the parser.
            let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// Splits a command line into words; `None` if a quote is not closed.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let (mut word, mut within, mut quote) = (String::new(), false, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None | Some('"'), '\\') => {
                word.push(chars.next()?);
                within = true;
            }
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => (quote, within) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if within {
                    words.push(std::mem::take(&mut word));
                }
                within = false;
            }
            (None, c) => {
                word.push(c);
                within = true;
            }
        }
    }
    if within {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let words = |line| split(line).map(|w| w.join("|"));
        assert_eq!(words(r#" a  "b c" 'd "e' f\ g "" "#).as_deref(), Some(r#"a|b c|d "e|f g|"#));
        assert_eq!(words("a 'b"), None);
        assert_eq!(split(""), Some(vec![]));
    }

    #[test]
    fn a_process_gives_credentials_or_says_why_not() {
        let good =
            run(r#"printf '{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S","SessionToken":"T"}'"#, "p")
                .unwrap();
        assert_eq!(good.token.unwrap().expose(), "T");
        let why = |command: &str| run(command, "p").unwrap_err();
        assert!(why("/no/such/program x").contains("can't be started"));
        assert!(why("sh -c 'echo nope >&2; exit 3'").contains("nope"));
        assert!(why("echo S3CRET").contains("not JSON") && !why("echo S3CRET").contains("S3CRET"));
        assert!(why("").contains("empty"));
        let begin = Instant::now();
        assert!(run_within("sleep 30", "p", Duration::from_millis(200)).unwrap_err().contains("killed"));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
