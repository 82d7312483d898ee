//! Plain text tables, for a terminal and for a README.

/// Rows of cells; the first row is the head.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|s| (*s).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// The first column left, all others right, as Markdown takes it, too.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, i: usize| row.get(i).cloned().unwrap_or_default();
        let width =
            |i: usize| self.rows.iter().map(|row| cell(row, i).chars().count()).max().unwrap_or(0).max(3);
        let mut out = String::new();
        for (n, row) in self.rows.iter().enumerate() {
            for i in 0..columns {
                let (text, width) = (cell(row, i), width(i));
                out += &if i == 0 { format!("| {text:<width$} ") } else { format!("| {text:>width$} ") };
            }
            out += "|\n";
            if n == 0 {
                for i in 0..columns {
                    let line = "-".repeat(width(i) + 1);
                    out += &if i == 0 { format!("|:{line}") } else { format!("|{line}:") };
                }
                out += "|\n";
            }
        }
        out
    }
}

/// The p-th percentile (0 to 100) of values; 0 of none.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * p / 100.0).round() as usize).copied().unwrap_or(0.0)
}

/// 1234567 as "1,234,567".
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["what", "n"]);
        table.row(&["a".into(), "1000".into()]);
        assert_eq!(table.text(), "| what |    n |\n|:-----|-----:|\n| a    | 1000 |\n");
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 50.0), 2.0);
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }
}
