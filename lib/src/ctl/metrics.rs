//! Metrics in the Prometheus text format, version 0.0.4.
//!
//! Invariants: `HELP` and `TYPE` once per name, its samples together however they were added; label values and help
//! texts are escaped; a name that is no metric name is made one (other characters become `_`).

use std::fmt::Write as _;

/// A page of metrics under construction.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    families: Vec<Family>,
}

#[derive(Clone, Debug)]
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    samples: String,
}

impl Metrics {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// A count that only grows; its name ends in `_total` by convention.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) -> &mut Self {
        self.sample(name, help, "counter", labels, &value.to_string())
    }

    /// A value that goes up and down, in base units (seconds, bytes); its name ends in the unit.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let text = match value {
            v if v.is_nan() => "NaN".to_owned(),
            v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
            v => v.to_string(),
        };
        self.sample(name, help, "gauge", labels, &text)
    }

    /// The page's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for family in &self.families {
            let Family { name, kind, help, samples } = family;
            // Writing to a String can't fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }

    fn sample(
        &mut self,
        name: &str,
        help: &str,
        kind: &'static str,
        labels: &[(&str, &str)],
        value: &str,
    ) -> &mut Self {
        let name = word(name, true);
        let at = self.families.iter().position(|f| f.name == name).unwrap_or_else(|| {
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            self.families.push(Family { name: name.clone(), kind, help, samples: String::new() });
            self.families.len() - 1
        });
        let samples = &mut self.families[at].samples;
        samples.push_str(&name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(samples, "{}{}=\"{text}\"", if i == 0 { '{' } else { ',' }, word(label, false));
        }
        let _ = writeln!(samples, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }
}

/// `text` as a metric name (`colon` allowed) or a label name.
fn word(text: &str, colon: bool) -> String {
    let fits = |(i, c): (usize, char)| match c {
        'a'..='z' | 'A'..='Z' | '_' => c,
        '0'..='9' if i > 0 => c,
        ':' if colon => c,
        _ => '_',
    };
    text.chars().enumerate().map(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_stay_together_and_labels_are_escaped() {
        let mut m = Metrics::new();
        m.counter("a_total", "how many\nlines \\ ", &[("x", "q\"\\\n"), ("y", "ü")], 3)
            .gauge("b_bytes", "b", &[], 1.5)
            .counter("a_total", "ignored", &[("x", "2")], 4)
            .gauge("9 bad-name", "c", &[("l-1", "")], f64::INFINITY);
        assert_eq!(
            m.render(),
            "# HELP a_total how many\\nlines \\\\ \n# TYPE a_total counter\n\
a_total{x=\"q\\\"\\\\\\n\",y=\"ü\"} 3\na_total{x=\"2\"} 4\n\
# HELP b_bytes b\n# TYPE b_bytes gauge\nb_bytes 1.5\n\
# HELP __bad_name c\n# TYPE __bad_name gauge\n__bad_name{l_1=\"\"} +Inf\n"
        );
    }
}
