//! Writes canonical JSON as a value is walked, without building a tree of it first.
//!
//! A fleet's plan takes tens of thousands of digests. What is sorted already, as most maps are, is written where it will stay; the members
//! of a record that is not are put in order when it ends. What comes out is what a tree with sorted maps gives (a test holds it to that).

use std::borrow::Cow;
use std::io::Write;

use serde::ser::{self, Error as _, Serialize};
use serde_json::{Error, Value};

/// Writes a value's canonical JSON to the end of `out`.
pub(super) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), Error> {
    value.serialize(Writer { out })
}

struct Writer<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Writer<'o> {
    /// A scalar is the same in a tree and outside of one.
    fn scalar<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        serde_json::to_writer(self.out, value)
    }

    fn list(self) -> List<'o> {
        self.out.push(b'[');
        List { out: self.out, first: true, close: "]" }
    }

    /// A list that is the only member of an object.
    fn named_list(self, name: &str) -> Result<List<'o>, Error> {
        Ok(List { close: "]}", ..self.name(name)?.list() })
    }

    /// The beginning of an object with one member, up to its value.
    fn name(self, name: &str) -> Result<Self, Error> {
        self.out.push(b'{');
        serde_json::to_writer(&mut *self.out, name)?;
        self.out.push(b':');
        Ok(self)
    }

    fn members(self, close: &'static str) -> Members<'o> {
        self.out.push(b'{');
        let start = self.out.len();
        Members { out: self.out, start, members: Vec::new(), key: None, close }
    }
}

macro_rules! scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<(), Error> {
            self.scalar(&value)
        })*
    };
}

impl<'o> ser::Serializer for Writer<'o> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = List<'o>;
    type SerializeTuple = List<'o>;
    type SerializeTupleStruct = List<'o>;
    type SerializeTupleVariant = List<'o>;
    type SerializeMap = Members<'o>;
    type SerializeStruct = Members<'o>;
    type SerializeStructVariant = Members<'o>;

    scalars! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f64: f64, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8]
    }

    /// A tree has one kind of fractions.
    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.scalar(&f64::from(value))
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.scalar(&())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        self.scalar(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let named = self.name(variant)?;
        write(named.out, value)?;
        named.out.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List<'o>, Error> {
        Ok(self.list())
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'o>, Error> {
        Ok(self.list())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'o>, Error> {
        Ok(self.list())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List<'o>, Error> {
        self.named_list(variant)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Members<'o>, Error> {
        Ok(self.members("}"))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members<'o>, Error> {
        Ok(self.members("}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members<'o>, Error> {
        Ok(self.name(variant)?.members("}}"))
    }
}

struct List<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
    close: &'static str,
}

impl List<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        write(self.out, value)
    }

    fn close(self) {
        self.out.extend_from_slice(self.close.as_bytes());
    }
}

macro_rules! lists {
    ($($kind:ident $method:ident),*) => {
        $(impl ser::$kind for List<'_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }

            fn end(self) -> Result<(), Error> {
                self.close();
                Ok(())
            }
        })*
    };
}

lists!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

/// A member of an object as it was written: `"key":value` from one place to another.
struct Member {
    key: Cow<'static, str>,
    from: usize,
    to: usize,
}

struct Members<'o> {
    out: &'o mut Vec<u8>,
    /// Where the first member begins.
    start: usize,
    members: Vec<Member>,
    /// The key whose value comes next.
    key: Option<Cow<'static, str>>,
    close: &'static str,
}

impl Members<'_> {
    fn member<T: Serialize + ?Sized>(&mut self, key: Cow<'static, str>, value: &T) -> Result<(), Error> {
        if !self.members.is_empty() {
            self.out.push(b',');
        }
        let from = self.out.len();
        serde_json::to_writer(&mut *self.out, &*key)?;
        self.out.push(b':');
        write(self.out, value)?;
        self.members.push(Member { key, from, to: self.out.len() });
        Ok(())
    }

    fn close(mut self) -> Result<(), Error> {
        if self.members.windows(2).any(|pair| pair[0].key >= pair[1].key) {
            self.sort()?;
        }
        self.out.extend_from_slice(self.close.as_bytes());
        Ok(())
    }

    /// Puts the members in order. Of two with one key the later counts, as in a map.
    fn sort(&mut self) -> Result<(), Error> {
        let written = self.out.split_off(self.start);
        self.members.sort_by(|one, other| one.key.cmp(&other.key));
        let mut members = self.members.iter().peekable();
        while let Some(member) = members.next() {
            if members.peek().is_some_and(|next| next.key == member.key) {
                continue;
            }
            if self.out.len() > self.start {
                self.out.push(b',');
            }
            let text = &written[member.from - self.start..member.to - self.start];
            self.out.write_all(text).map_err(Error::io)?;
        }
        Ok(())
    }
}

impl ser::SerializeMap for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key = Some(match serde_json::to_value(key)? {
            Value::String(text) => text.into(),
            Value::Number(number) => number.to_string().into(),
            Value::Bool(yes) => yes.to_string().into(),
            _ => return Err(Error::custom("a key must be a string")),
        });
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let key = self.key.take().ok_or_else(|| Error::custom("a value without a key"))?;
        self.member(key, value)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

impl ser::SerializeStruct for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        self.member(key.into(), value)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

impl ser::SerializeStructVariant for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        self.member(key.into(), value)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    fn written<T: Serialize>(value: &T) -> String {
        let mut out = Vec::new();
        write(&mut out, value).expect("it has string keys");
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    fn by_a_tree<T: Serialize>(value: &T) -> String {
        serde_json::to_value(value).expect("it has string keys").to_string()
    }

    #[derive(Serialize)]
    enum Kind {
        #[serde(rename = "z")]
        Unit,
        New(u8),
        Tuple(i64, &'static str),
        Record {
            z: Option<f32>,
            a: char,
        },
    }

    #[derive(Serialize)]
    struct Everything {
        z: Vec<Kind>,
        #[serde(skip_serializing_if = "Option::is_none")]
        none: Option<u8>,
        a: f64,
        m: BTreeMap<u16, (bool, ())>,
        #[serde(flatten)]
        more: BTreeMap<&'static str, &'static str>,
        nan: f64,
    }

    #[test]
    fn every_kind_of_value_is_written_as_a_tree_with_sorted_maps_writes_it() {
        let value = Everything {
            z: vec![Kind::Unit, Kind::New(7), Kind::Tuple(-3, "ä\"\n\u{1}"), Kind::Record { z: Some(0.1), a: 'x' }],
            none: None,
            a: 1e300,
            m: BTreeMap::from([(10, (true, ())), (9, (false, ()))]),
            // One key stands twice: in a map the later one stays.
            more: BTreeMap::from([("a", "again"), ("y\\", "\u{2028}"), ("b", "")]),
            nan: f64::NAN,
        };
        assert_eq!(written(&value), by_a_tree(&value));
        assert_eq!(written(&Vec::<u8>::new()), "[]");
        assert_eq!(written(&BTreeMap::<String, u8>::new()), "{}");
    }

    #[test]
    fn a_key_that_is_no_text_is_an_error() {
        assert!(write(&mut Vec::new(), &BTreeMap::from([((1, 2), 3)])).is_err());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::vec((".{0,3}", inner), 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_written_as_it_is(value in json()) {
            prop_assert_eq!(written(&value), value.to_string());
        }
    }
}
