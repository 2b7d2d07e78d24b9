//! The number that an answer gives as its result.

/// Mark that GSM8K puts before a result.
const RESULT: &str = "####";

/// The number that `text` gives as its result, in normal form: the first one after the last `####`,
/// else the last of the text. `None` if it has no number.
pub(super) fn number(text: &str) -> Option<String> {
    let result = text.rsplit_once(RESULT).map(|(_, result)| result);
    let result = result.and_then(|result| numbers(result).into_iter().next());
    result.or_else(|| numbers(text).pop())
}

/// All numbers in the text, in normal form: no leading or trailing zeros, no `+`, no `-0`. A comma
/// before three digits groups thousands.
fn numbers(text: &str) -> Vec<String> {
    // Drop dollar signs, which may separate sign and digits, and replace the typographic minus.
    let chars: Vec<char> = text
        .chars()
        .filter(|&c| c != '$')
        .map(|c| if c == '\u{2212}' { '-' } else { c })
        .collect();
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let digit_run = |from: usize| (from..).take_while(|&at| digit(at)).count();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let starts = digit(at) || (chars[at] == '.' && digit(at + 1));
        if !starts {
            at += 1;
            continue;
        }
        // `5-3` is a difference, and `item-3` a name.
        let negative = at > 0
            && chars[at - 1] == '-'
            && !(at > 1 && (chars[at - 2].is_alphanumeric() || chars[at - 2] == ')'));
        let mut whole: String = chars[at..at + digit_run(at)].iter().collect();
        at += whole.len();
        while !whole.is_empty() && chars.get(at) == Some(&',') && digit_run(at + 1) == 3 {
            whole.extend(&chars[at + 1..at + 4]);
            at += 4;
        }
        let mut fraction = String::new();
        if chars.get(at) == Some(&'.') && digit(at + 1) {
            fraction.extend(&chars[at + 1..at + 1 + digit_run(at + 1)]);
            at += 1 + fraction.len();
        }
        found.push(normalized(negative, &whole, &fraction));
    }
    found
}

/// Normal form of a number, from the digits before and after the point.
fn normalized(negative: bool, whole: &str, fraction: &str) -> String {
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let fraction = fraction.trim_end_matches('0');
    let value = match fraction {
        "" => whole.to_owned(),
        _ => format!("{whole}.{fraction}"),
    };
    if negative && value != "0" {
        format!("-{value}")
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_number(text: &str, want: &str) {
        assert_eq!(number(text).as_deref(), Some(want), "{text:?}");
    }

    #[test]
    fn the_last_number_counts() {
        assert_number("18", "18");
        assert_number("She has 3 apples and 5 pears, so 8 fruits.", "8");
        assert_number("400/2 = <<400/2=200>>200.", "200");
        assert_number("It costs $1,234,567.80 in all", "1234567.8");
        assert_number("50%", "50");
        assert_number("from 3,4 and 5,60", "60");
        assert_number("0.50", "0.5");
        assert_number(".5", "0.5");
        assert_number("18.0", "18");
        assert_number("018.", "18");
        assert_number("1,0000", "0");
    }

    #[test]
    fn a_minus_is_a_sign_unless_it_is_a_difference() {
        assert_number("it is -18", "-18");
        assert_number("-$18", "-18");
        assert_number("$-18", "-18");
        assert_number("\u{2212}3.5", "-3.5");
        assert_number("20-18", "18");
        assert_number("(4+5)-3", "3");
        assert_number("item-3", "3");
        assert_number("-0.0", "0");
    }

    #[test]
    fn the_result_mark_wins() {
        assert_number("so 20 pages.\n#### 18\nThat took 3 steps", "18");
        assert_number("#### 1 no, #### $1,018.00 and 5 more", "1018");
        assert_number("it is 7 ####", "7");
        assert_number("it is 7 #### none", "7");
    }

    #[test]
    fn texts_without_numbers_have_no_result() {
        for text in ["", "none", "####", "$", "-", "...", "eighteen"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}
