//! Text of an OCI configuration as words of shell scripts, by apptainer's rules.

/// The text between double quotes of a shell, with nothing in it that the shell expands.
pub(super) fn in_double_quotes(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | '"' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// The text in single quotes of a shell.
pub(super) fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

/// The text in double quotes as Go's `%q` writes it: what is not printable is escaped.
pub(super) fn go_quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            ' '..='~' => quoted.push(character),
            _ => quoted.push_str(&beyond_ascii(character)),
        }
    }
    quoted.push('"');
    quoted
}

fn beyond_ascii(character: char) -> String {
    let is_printable = !character.is_control() && !character.is_whitespace() && character.escape_debug().len() == 1;
    match u32::from(character) {
        _ if is_printable => character.to_string(),
        code @ ..0x80 => format!("\\x{code:02x}"),
        code @ ..0x1_0000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_where_they_stand() {
        assert_eq!(in_double_quotes("a\"b$c`d`\\e 'f'"), r#"a\"b\$c\`d\`\\e 'f'"#);
        assert_eq!(single_quoted("it's"), r#"'it'"'"'s'"#);
        assert_eq!(go_quoted("a\nb\t\"é\\\u{1}\u{a0}\u{200b}"), r#""a\nb\t\"é\\\x01\u00a0\u200b""#);
    }
}
