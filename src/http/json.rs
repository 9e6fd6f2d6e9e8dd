//! Reads JSON bodies, and says where one is wrong without repeating it.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::problem::{Code, Problem};

/// A JSON object and nothing else: the readers that serde derives for structs take arrays too, by the order of members.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// Reads a body that is one object, without copying its opaque parts; `form` shows how it should look.
///
/// # Errors
/// `invalid-json`
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], form: &str) -> Result<T, Problem> {
    let invalid = |detail: String| Problem::new(Code::InvalidJson, detail);
    // One check of the whole spares one for each string.
    let text = std::str::from_utf8(body).map_err(|_| invalid("The body is no UTF-8.".to_owned()))?;
    serde_json::from_str(text).map(|Object(value)| value).map_err(|error| {
        if !error.is_data() {
            return invalid(format!("The body is no JSON: {error}."));
        }
        // Again, and slower, to say where.
        let reader = &mut serde_json::Deserializer::from_str(text);
        let place = serde_path_to_error::deserialize::<_, Object<T>>(reader);
        let pointer =
            place.err().map(|error| pointer(error.path(), is_about_a_name(error.inner()))).unwrap_or_default();
        invalid(format!("The body is {form}.")).at(pointer, what(&error))
    })
}

/// Whether the object that has the member is meant, not the member: its name is the client's text.
fn is_about_a_name(error: &serde_json::Error) -> bool {
    let text = error.to_string();
    ["unknown field", "duplicate field", "missing field"].iter().any(|start| text.starts_with(start))
}

/// A JSON pointer as a fragment (RFC 6901 §6).
fn pointer(path: &serde_path_to_error::Path, of_object: bool) -> String {
    use serde_path_to_error::Segment;
    let count = path.iter().len();
    let last_is_a_name = matches!(path.iter().next_back(), Some(Segment::Map { .. }));
    let kept = count - usize::from(of_object && last_is_a_name && count > 0);
    path.iter().take(kept).fold("#".to_owned(), |pointer, segment| match segment {
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Map { key } => format!("{pointer}/{key}"),
        _ => pointer,
    })
}

/// What serde says is wrong, without the client's own text in it; ours comes last.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    let expected = text.rsplit_once(", expected ").map(|(_, expected)| expected);
    match expected {
        Some(expected) if text.starts_with("unknown field") => {
            format!("has a member that is not known here; known: {}", expected.trim_start_matches("one of "))
        }
        Some(expected) => format!("is not {expected}"),
        None => text.to_owned(),
    }
}
