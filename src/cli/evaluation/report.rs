//! Evaluations as a table for people and as JSON for machines.

use std::fmt;

use serde_json::{Map, Value, json};

use super::Evaluated;
use crate::data::Dataset;
use crate::eval::{Answers, EvalResult};

/// Evaluations on one data set, of the bare base first.
pub struct Report<'a> {
    pub base: &'a str,
    pub dataset: &'a Dataset,
    pub evaluated: &'a [Evaluated],
}

impl Report<'_> {
    /// `{"rows", "results": [{"ticket", "loss", "perplexity", "exact_match", …}], …}`. Infinite
    /// values, such as the loss of a ticket that rules out a token, are null.
    pub fn json(&self) -> Value {
        let result = |evaluated: &Evaluated| {
            let EvalResult { loss, tokens, .. } = evaluated.result;
            let mut fields = Map::new();
            let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
            set("ticket", evaluated.ticket.clone().into());
            set("loss", loss.into());
            set("perplexity", evaluated.result.perplexity().into());
            let answers = evaluated.result.answers;
            let degree = answers.is_some_and(|answers| !answers.rule.is_exact());
            let key = if degree { "rouge_l" } else { "exact_match" };
            set(key, answers.and_then(|answers| answers.mean()).into());
            set("answers", answers.map(|answers| answers.rows).into());
            set("tokens", tokens.into());
            Value::Object(fields)
        };
        json!({
            "rows": self.dataset.examples.len(),
            "results": self.evaluated.iter().map(result).collect::<Vec<_>>(),
            "rows_cut": self.dataset.cut,
            "rows_left_out": self.dataset.left_out,
            "data_sha256": self.dataset.digest.to_string(),
        })
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |evaluated: &Evaluated| match &evaluated.ticket {
            Some(ticket) => ticket.clone(),
            None => format!("base {}", self.base),
        };
        let names: Vec<String> = self.evaluated.iter().map(name).collect();
        let lengths = names.iter().map(|name| name.chars().count());
        let width = lengths.max().unwrap_or(0);
        let answers = self.evaluated.iter().find_map(|e| e.result.answers);
        let rule = answers.map_or("", |answers| answers.rule.measure());
        let head = format!(
            "{:width$}  {:>6}  {:>7}  {:>10}  {rule:>18}",
            "", "rows", "loss", "perplexity"
        );
        writeln!(f, "{}", head.trim_end())?;
        for (name, evaluated) in names.iter().zip(self.evaluated) {
            let result = &evaluated.result;
            let line = format!(
                "{name:width$}  {:>6}  {:>7.4}  {:>10.3}  {:>18}",
                result.rows,
                result.loss,
                result.perplexity(),
                result.answers.map(mean_score).unwrap_or_default(),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Mean score of the answers, such as `34/100 = 34.0 %`.
fn mean_score(answers: Answers) -> String {
    match answers.mean() {
        None => "no answers".to_owned(),
        Some(mean) if answers.rule.is_exact() => {
            let Answers { rows, score, .. } = answers;
            format!("{score}/{rows} = {:.1} %", 100.0 * mean)
        }
        Some(mean) => format!("{mean:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::MatchRule;
    use crate::ticket::Digest;

    fn dataset() -> Dataset {
        Dataset {
            examples: Vec::new(),
            digest: Digest::of(b"rows"),
            cut: 2,
            left_out: 1,
        }
    }

    fn evaluated(ticket: Option<&str>, loss: f64, answers: Option<Answers>) -> Evaluated {
        Evaluated {
            ticket: ticket.map(str::to_owned),
            result: EvalResult {
                rows: 100,
                tokens: 2000,
                loss,
                answers,
                texts: Vec::new(),
            },
        }
    }

    fn answers(rule: MatchRule, rows: usize, score: f64) -> Option<Answers> {
        Some(Answers { rule, rows, score })
    }

    #[test]
    fn a_table_has_a_row_per_ticket() {
        let evaluated = [
            evaluated(None, 1.2, answers(MatchRule::Sql, 100, 0.0)),
            evaluated(Some("sql"), 0.3125, answers(MatchRule::Sql, 100, 34.0)),
        ];
        let dataset = dataset();
        let report = Report {
            base: "tiny",
            dataset: &dataset,
            evaluated: &evaluated,
        };
        let want = "\
             \x20            rows     loss  perplexity         exact match\n\
             base tiny     100   1.2000       3.320       0/100 = 0.0 %\n\
             sql           100   0.3125       1.367     34/100 = 34.0 %\n";
        assert_eq!(report.to_string(), want);
        let json = report.json();
        assert_eq!(json["results"][0]["ticket"], Value::Null);
        assert_eq!(json["results"][1]["ticket"], "sql");
        assert_eq!(json["results"][1]["exact_match"], 0.34);
        assert_eq!(json["results"][1]["loss"], 0.3125);
        assert_eq!(
            (&json["rows_cut"], &json["rows_left_out"]),
            (&json!(2), &json!(1))
        );
    }

    #[test]
    fn degrees_and_missing_answers_differ() {
        let evaluated = [
            evaluated(None, 1.0, answers(MatchRule::RougeL, 4, 1.0)),
            evaluated(Some("none"), 1.0, answers(MatchRule::Sql, 0, 0.0)),
            evaluated(Some("skipped"), f64::INFINITY, None),
        ];
        let dataset = dataset();
        let report = Report {
            base: "tiny",
            dataset: &dataset,
            evaluated: &evaluated,
        };
        let text = report.to_string();
        assert!(
            text.contains("ROUGE-L") && text.contains("0.2500"),
            "{text}"
        );
        assert!(
            text.contains("no answers") && text.contains("inf"),
            "{text}"
        );
        let json = report.json();
        assert_eq!(json["results"][0]["rouge_l"], 0.25);
        assert_eq!(json["results"][0].get("exact_match"), None);
        for other in [1, 2] {
            assert_eq!(json["results"][other]["exact_match"], Value::Null);
        }
        assert_eq!(json["results"][2]["loss"], Value::Null);
    }
}
