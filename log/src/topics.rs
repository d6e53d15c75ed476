//! What a topic may be called.

/// Kafka's longest topic name.
const MAX_NAME_BYTES: usize = 249;

/// What [`is_valid_name`] asks for, for people.
pub(crate) const NAME_RULE: &str = "a topic name has 1 to 249 of the characters a-z, A-Z, 0-9, \
    '.', '_' and '-', and is neither '.' nor '..'";

/// Whether a topic may have this name: Kafka's rule.
pub(crate) fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rule() {
        for name in ["a", "shop.state", "A_b-9", &"x".repeat(249)] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "ä", "a b", &"x".repeat(250)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
