//! What the topic says, read from its first record to the last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tailwater_change::SchemaId;

use crate::record::{Key, SchemaValue};

/// Subjects, versions and ids. No IO.
#[derive(Debug, Default)]
pub(crate) struct State {
    texts: HashMap<SchemaId, Arc<str>>,
    subjects: BTreeMap<String, BTreeMap<u32, SchemaId>>,
    highest: u32,
}

impl State {
    /// Takes one record.
    pub(crate) fn apply(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        let key: Key = serde_json::from_slice(key)?;
        if key.keytype != "SCHEMA" {
            return Ok(());
        }
        let Some(value) = value else {
            if let (Some(subject), Some(version)) = (key.subject, key.version)
                && let Some(versions) = self.subjects.get_mut(&subject)
            {
                // The id stays readable: records that name it may still be in a topic.
                versions.remove(&version);
            }
            return Ok(());
        };
        let value: SchemaValue = serde_json::from_slice(value)?;
        self.highest = self.highest.max(value.id.get());
        let text = self.texts.entry(value.id).or_insert_with(|| Arc::from(&*value.schema));
        if **text != *value.schema {
            // Two writers gave the id: the first in the log has it, rows are written with its text,
            // and the other text is not registered. Who wants it takes the next id.
            return Ok(());
        }
        self.subjects.entry(value.subject).or_default().insert(value.version, value.id);
        Ok(())
    }

    pub(crate) fn text(&self, id: SchemaId) -> Option<Arc<str>> {
        self.texts.get(&id).cloned()
    }

    /// Every subject that has a version.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let live = self.subjects.iter().filter(|(_, versions)| !versions.is_empty());
        live.map(|(subject, _)| subject.clone()).collect()
    }

    /// The versions of `subject` and their ids, oldest first.
    pub(crate) fn versions(&self, subject: &str) -> Vec<(u32, SchemaId)> {
        let versions = self.subjects.get(subject).into_iter().flatten();
        versions.map(|(version, id)| (*version, *id)).collect()
    }

    /// The id under which `subject` has exactly this text.
    pub(crate) fn registered(&self, subject: &str, text: &str) -> Option<SchemaId> {
        self.subjects
            .get(subject)?
            .values()
            .rev()
            .copied()
            .find(|id| self.texts.get(id).is_some_and(|known| &**known == text))
    }

    /// What a new text of `subject` gets: its version, and an id — that of an equal text of
    /// another subject, or the next. `None`: no id is left.
    pub(crate) fn next(&self, subject: &str, text: &str) -> Option<(u32, SchemaId)> {
        let version = self
            .subjects
            .get(subject)
            .and_then(|versions| versions.last_key_value())
            .map_or(1, |(version, _)| version.saturating_add(1));
        let id = self
            .texts
            .iter()
            .find(|(_, known)| &***known == text)
            .map(|(id, _)| *id)
            .or_else(|| self.highest.checked_add(1).map(SchemaId::new))?;
        Some((version, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(state: &mut State, subject: &str, text: &str) -> SchemaId {
        if let Some(id) = state.registered(subject, text) {
            return id;
        }
        let (version, id) = state.next(subject, text).unwrap();
        let value = SchemaValue {
            subject: subject.into(),
            version,
            id,
            schema_type: Some("PROTOBUF".into()),
            schema: text.into(),
            deleted: false,
        };
        state
            .apply(
                &serde_json::to_vec(&Key::schema(subject, version)).unwrap(),
                Some(&serde_json::to_vec(&value).unwrap()),
            )
            .unwrap();
        id
    }

    #[test]
    fn equal_texts_share_an_id_and_different_ones_never() {
        let mut state = State::default();
        let first = add(&mut state, "a", "one");
        assert_eq!(add(&mut state, "a", "one"), first);
        assert_eq!(add(&mut state, "b", "one"), first);
        let second = add(&mut state, "a", "two");
        assert_ne!(first, second);
        assert_eq!(add(&mut state, "a", "one"), first, "an older version is still registered");
        assert_eq!(state.text(second).as_deref(), Some("two"));
    }

    #[test]
    fn of_two_texts_with_one_id_the_first_in_the_log_has_it() {
        let mut state = State::default();
        let first = add(&mut state, "a", "one");
        let key = serde_json::to_vec(&Key::schema("b", 1)).unwrap();
        let value = SchemaValue {
            subject: "b".into(),
            version: 1,
            id: first,
            schema_type: Some("PROTOBUF".into()),
            schema: "two".into(),
            deleted: false,
        };
        state.apply(&key, Some(&serde_json::to_vec(&value).unwrap())).unwrap();
        assert_eq!(state.text(first).as_deref(), Some("one"));
        assert_eq!(state.registered("b", "two"), None);
        let second = add(&mut state, "b", "two");
        assert_ne!(second, first);
        assert_eq!(state.text(second).as_deref(), Some("two"));
    }

    #[test]
    fn records_of_other_tools_are_passed_over_and_garbage_is_not() {
        let mut state = State::default();
        state.apply(br#"{"keytype":"NOOP","magic":0}"#, None).unwrap();
        state.apply(br#"{"keytype":"CONFIG","subject":null,"magic":0}"#, Some(b"{}")).unwrap();
        assert!(state.apply(b"no json", None).is_err());
    }
}
