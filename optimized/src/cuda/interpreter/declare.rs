//! Declarations: variables, heads of kernels, and the numbers in them.

use super::parse::Entry;

/// A variable in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    /// `shared`, `global`, `const` or `local`.
    pub(super) space: String,
    pub(super) name: String,
    pub(super) align: usize,
    /// `None`: open, the launch gives the size.
    pub(super) bytes: Option<usize>,
    /// Content, where the text gives one.
    pub(super) content: Vec<u8>,
}

/// Operands, split at the commas that no bracket encloses.
pub(super) fn split(operands: &str) -> Vec<String> {
    let (mut depth, mut all, mut one) = (0, Vec::new(), String::new());
    for c in operands.chars() {
        depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
        if c == ',' && depth == 0 {
            all.push(std::mem::take(&mut one));
        } else {
            one.push(c);
        }
    }
    all.push(one);
    all.iter().map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
}

/// A number: decimal, `0x...`, `0f...` (bits of an f32) or `0d...` (of an f64).
pub(super) fn immediate(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

/// `.visible .entry NAME(.param .TYPE NAME, ...) .maxntid X, Y, Z`
pub(super) fn head_of_entry(head: &str) -> Result<Entry, String> {
    let (_, head) = head.split_once(".entry").ok_or("no .entry")?;
    let (name, rest) = head.split_once('(').unwrap_or((head, ")"));
    let (parameters, directives) = rest.split_once(')').ok_or("parameters without an end")?;
    let mut entry = Entry { name: name.trim().to_owned(), ..Entry::default() };
    for parameter in split(parameters) {
        let words: Vec<&str> = parameter.split_whitespace().collect();
        let [".param", kind, .., name] = words[..] else {
            return Err(format!("not a parameter: {parameter}"));
        };
        // `.ptr .global .align 4` says nothing that a check would need.
        entry.parameters.push((name.to_owned(), kind.trim_start_matches('.').to_owned()));
    }
    let numbers = |text: &str| -> Vec<u32> {
        let text = text.split('.').next().unwrap_or(text);
        text.split(',').filter_map(|number| number.trim().parse().ok()).collect()
    };
    if let Some((_, limit)) = directives.split_once(".maxntid") {
        entry.most_threads = Some(numbers(limit).iter().product());
    }
    if let Some((_, sizes)) = directives.split_once(".reqntid") {
        let sizes = numbers(sizes);
        let size = |axis| sizes.get(axis).copied().unwrap_or(1);
        entry.exact_threads = Some([size(0), size(1), size(2)]);
    }
    Ok(entry)
}

/// `.extern .shared .align 16 .b8 name[64]`, perhaps ` = {1, 2}`
pub(super) fn declared(text: &str) -> Result<Declared, String> {
    let (text, content) = match text.split_once('=') {
        None => (text, ""),
        Some((text, content)) => (text, content.trim().trim_matches(['{', '}'])),
    };
    let mut declared = Declared {
        space: String::new(),
        name: String::new(),
        align: 1,
        bytes: Some(0),
        content: Vec::new(),
    };
    let mut element_bytes = 1;
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".shared" | ".global" | ".const" | ".local" => declared.space = word[1..].to_owned(),
            ".align" => {
                let align = words.next().and_then(|align| align.parse().ok());
                declared.align = align.ok_or_else(|| format!("no alignment: {text}"))?;
            }
            _ if word.starts_with('.') => {
                let bits: usize = word[2..].parse().map_err(|_| format!("unknown: {text}"))?;
                element_bytes = bits / 8;
            }
            name => {
                let (name, len) = name.split_once('[').map_or((name, "1]"), |parts| parts);
                let len = len.trim_end_matches(']');
                declared.name = name.to_owned();
                declared.bytes = match len {
                    "" => None,
                    len => {
                        let len: usize = len.parse().map_err(|_| format!("unknown: {text}"))?;
                        Some(len * element_bytes)
                    }
                };
            }
        }
    }
    declared.align = declared.align.max(element_bytes);
    for number in content.split(',').filter(|number| !number.trim().is_empty()) {
        let number = number.trim();
        let value = immediate(number).ok_or_else(|| format!("unknown content {number}"))?;
        declared.content.extend(&value.to_le_bytes()[..element_bytes]);
    }
    if declared.space.is_empty() || declared.name.is_empty() {
        return Err(format!("not understood: {text}"));
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_have_content() {
        let table = declared(".global .align 4 .u32 table[2] = {1, 258}").unwrap();
        assert_eq!(table.content, [1, 0, 0, 0, 2, 1, 0, 0]);
        let floor = declared(".global .align 4 .f32 floor = 0f322BCC77").unwrap();
        assert_eq!((floor.bytes, floor.content), (Some(4), vec![0x77, 0xCC, 0x2B, 0x32]));
    }

    #[test]
    fn immediates_of_every_form() {
        assert_eq!(immediate("-2"), Some(u64::MAX - 1));
        assert_eq!(immediate("0x1F"), Some(31));
        assert_eq!(immediate("4294967295U"), Some(0xFFFF_FFFF));
        assert_eq!(immediate("0f3F800000"), Some(0x3F80_0000));
        assert_eq!(immediate("0d3FF0000000000000"), Some(1f64.to_bits()));
        assert_eq!(immediate("name"), None);
    }
}
