//! Topic templates: `{device}` and `{camera}` in the topics of the configuration.
//!
//! Owns: nothing. Invariant: what [`fill`] returns for a checked template is a topic that may be published on, because
//! device ids and camera names hold no `/`, `+`, `#` or NUL.

use edge::mqtt::topic;

/// What is wrong with `template`, if anything. `camera` says whether `{camera}` may stand in it.
///
/// # Errors
/// In words for the person who wrote it.
pub fn check(template: &str, camera: bool) -> Result<(), String> {
    let known: &[&str] = if camera { &["device", "camera"] } else { &["device"] };
    let mut rest = template;
    while let Some(open) = rest.find(['{', '}']) {
        let name = rest[open..].strip_prefix('{').and_then(|r| r.split_once('}')).map(|(name, _)| name);
        match name {
            Some(name) if known.contains(&name) => rest = &rest[open + name.len() + 2..],
            Some(name) => {
                let known: Vec<String> = known.iter().map(|k| format!("{{{k}}}")).collect();
                return Err(format!("{{{name}}} is no variable; expected {}", known.join(" or ")));
            }
            None => return Err("a '{' or '}' without its other half".to_owned()),
        }
    }
    topic::check_name(&fill(template, "d", "c")).map_err(str::to_owned)
}

/// The template with its variables replaced.
#[must_use]
pub fn fill(template: &str, device: &str, camera: &str) -> String {
    template.replace("{device}", device).replace("{camera}", camera)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        assert_eq!(fill("site/{device}/{camera}/faces", "nx-1", "door"), "site/nx-1/door/faces");
        assert!(check("faces", true).is_ok());
        assert!(check("a/{device}/{camera}", true).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            check("a/{cam}", true).unwrap_err(),
            "{cam} is no variable; expected {device} or {camera}"
        );
        assert_eq!(check("a/{camera}", false).unwrap_err(), "{camera} is no variable; expected {device}");
        assert!(check("a/{device", true).unwrap_err().contains("other half"));
        assert!(check("a}", true).unwrap_err().contains("other half"));
        assert!(check("a/#", true).unwrap_err().contains("wildcard"));
        assert!(check("", true).is_err());
    }
}
