//! Lays one tree over another: maps key by key, lists and scalars whole, and nothing (`key:` or `null`) takes a key away.
//!
//! Every part keeps the place it was written at, so an error in an overlay points into the overlay.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{Kind, Value};

/// Lays `over` on `base`.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (&mut base.kind, over.kind) {
        (Kind::Map(entries), Kind::Map(more)) => {
            let places: BTreeMap<String, usize> =
                entries.iter().enumerate().map(|(at, entry)| (entry.key.clone(), at)).collect();
            let mut taken_away = BTreeSet::new();
            for mut entry in more {
                match places.get(&entry.key) {
                    Some(_) if entry.value.is_null() => {
                        taken_away.insert(entry.key);
                    }
                    Some(&at) => {
                        entries[at].key_span = entry.key_span;
                        merge(&mut entries[at].value, entry.value);
                    }
                    None if entry.value.is_null() => {}
                    None => {
                        drop_nulls(&mut entry.value);
                        entries.push(entry);
                    }
                }
            }
            entries.retain(|entry| !taken_away.contains(&entry.key));
        }
        (_, mut kind) => {
            if let Kind::Map(entries) = &mut kind {
                entries.retain(|entry| !entry.value.is_null());
                entries.iter_mut().for_each(|entry| drop_nulls(&mut entry.value));
            }
            *base = Value { span: over.span, kind };
        }
    }
}

fn drop_nulls(value: &mut Value) {
    if let Kind::Map(entries) = &mut value.kind {
        entries.retain(|entry| !entry.value.is_null());
        entries.iter_mut().for_each(|entry| drop_nulls(&mut entry.value));
    }
}
