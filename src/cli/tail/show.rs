//! How events are shown: for people, or for programs.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _},
};

use console::{Term, measure_text_width, style, truncate_str};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::{Failure, client::foreign};

/// The form in which events are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TailFormat {
    /// A line for people: time, stream@version, type, data
    #[default]
    Text,
    /// The event as the service sends it, one JSON object a line
    Ndjson,
}

/// What is shown of an event; further members do not matter here.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    version: u64,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Writes events in one form.
pub struct Show {
    format: TailFormat,
    terminal: Option<Term>,
}

impl Show {
    /// For standard output, which may be a terminal.
    #[must_use]
    pub fn new(format: TailFormat) -> Self {
        Self { format, terminal: io::stdout().is_terminal().then(Term::stdout) }
    }

    /// Appends an event's line to `out`.
    ///
    /// # Errors
    /// Where it is no event of ours.
    pub fn write(&self, event: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        match self.format {
            TailFormat::Ndjson => out.extend_from_slice(event),
            TailFormat::Text => {
                let event: Shown<'_> = serde_json::from_slice(event).map_err(|error| foreign(&error))?;
                // Asked anew for each line: the window may have changed.
                let size = self.terminal.as_ref().map(|terminal| terminal.size_checked().unwrap_or((24, 80)));
                out.extend_from_slice(event.line(size.map(|(_, columns)| columns.into())).as_bytes());
            }
        }
        out.push(b'\n');
        Ok(())
    }
}

impl Shown<'_> {
    /// The line for people, no wider than a terminal of so many columns.
    fn line(&self, columns: Option<usize>) -> String {
        let Self { time, stream, version, kind, data } = self;
        let (kind, data) = (harmless(kind), harmless(data.get()));
        let head = measure_text_width(&format!("{time} {stream}@{version} {kind} "));
        // Where the rest fills a line by itself, the data begin on the next one.
        let room = columns.map(|columns| if head < columns { columns - head } else { columns });
        let data = room.map_or(Cow::Borrowed(&*data), |room| truncate_str(&data, room, "…"));
        let (time, place, kind) = (style(time).dim(), style(format!("{stream}@{version}")).cyan(), style(kind).bold());
        format!("{time} {place} {kind} {data}")
    }
}

/// Text that does nothing to a terminal. JSON has no bare control characters below U+0020, but those from U+007F on.
fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |character: char| match character {
        control if control.is_control() => format!("\\u{:04x}", u32::from(control)),
        other => other.to_string(),
    };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(data: &str, columns: Option<usize>) -> String {
        let (time, stream, kind) = ("2026-11-23T12:00:00.000Z".into(), "order-1".into(), "paid".into());
        let data = serde_json::from_str(data).expect("JSON");
        console::set_colors_enabled(false);
        Shown { time, stream, version: 7, kind, data }.line(columns)
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let head = "2026-11-23T12:00:00.000Z order-1@7 paid ";
        assert_eq!(line(r#"{"total":42.50}"#, None), format!("{head}{{\"total\":42.50}}"));
        assert_eq!(line(r#"{"total":42.50}"#, Some(55)), format!("{head}{{\"total\":42.50}}"));
        assert_eq!(line(r#"{"total":42.50}"#, Some(54)), format!("{head}{{\"total\":42.5…"));
        // Two columns each.
        assert_eq!(line("\"日本語\"", Some(46)), format!("{head}\"日本…"));
        assert_eq!(line(r#""0123456789""#, Some(10)), format!("{head}\"01234567…"));
    }

    #[test]
    fn data_cannot_speak_to_the_terminal() {
        assert!(line("\"a\u{9b}31m\u{7f}\t\"".replace('\t', "").as_str(), None).ends_with(r#""a\u009b31m\u007f""#));
        assert!(line("[1,\t2]", None).ends_with("[1,\\u00092]"));
    }
}
