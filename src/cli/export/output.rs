//! Where an export goes: standard output, a device or pipe, or a file that is there only once it is whole.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use tempfile::{Builder, NamedTempFile};

use crate::cli::Failure;

/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// See the module.
pub struct Output {
    form: Form,
    path: PathBuf,
}

enum Form {
    Plain(BufWriter<Target>),
    Gzip(GzEncoder<BufWriter<Target>>),
}

enum Target {
    Stdout(io::Stdout),
    /// A device or a pipe: there is nothing to put in its place.
    Device(File),
    /// Beside the file whose name it takes at the end.
    Temporary(NamedTempFile),
}

impl Output {
    /// Opens the output: gzip where the name ends in `.gz`, standard output where it is `-`.
    ///
    /// # Errors
    /// Where nothing can be written there.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let open = || -> io::Result<_> {
            if path.as_os_str() == "-" {
                return Ok((Target::Stdout(io::stdout()), path.to_owned()));
            }
            // Resolved, for a link stays a link and its file is replaced.
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            Ok((target(&path)?, path))
        };
        let (target, path) = open().map_err(|error| at(path, &error))?;
        let target = BufWriter::with_capacity(BUFFER_BYTES, target);
        let gzip = path.extension().is_some_and(|extension| extension == "gz");
        let form = if gzip { Form::Gzip(GzEncoder::new(target, Compression::default())) } else { Form::Plain(target) };
        Ok(Self { form, path })
    }

    /// Whether this is standard output.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Writes further bytes.
    ///
    /// # Errors
    /// [`Broken`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let written = match &mut self.form {
            Form::Plain(out) => out.write_all(bytes),
            Form::Gzip(out) => out.write_all(bytes),
        };
        written.map_err(|error| Broken::of(&self.path, &error))
    }

    /// Writes what is left, and gives the file its name.
    ///
    /// # Errors
    /// [`Broken`]
    pub fn finish(self) -> Result<(), Broken> {
        let Self { form, path } = self;
        let finish = || {
            let out = match form {
                Form::Plain(out) => out,
                Form::Gzip(out) => out.finish()?,
            };
            match out.into_inner().map_err(io::IntoInnerError::into_error)? {
                Target::Stdout(mut out) => out.flush(),
                Target::Device(mut out) => out.flush(),
                Target::Temporary(file) => {
                    file.as_file().sync_all()?;
                    file.persist(&path).map(drop).map_err(|error| error.error)
                }
            }
        };
        finish().map_err(|error| Broken::of(&path, &error))
    }
}

fn target(path: &Path) -> io::Result<Target> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => {
            return Ok(Target::Device(OpenOptions::new().write(true).open(path)?));
        }
        _ => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = Builder::new();
    // As any new file: what the umask leaves of this.
    builder.prefix(".streamkeep-export-").permissions(Permissions::from_mode(0o666));
    Ok(Target::Temporary(builder.tempfile_in(folder)?))
}

/// Why nothing more can be written.
pub enum Broken {
    /// The reader of the pipe has what it wants; that is no failure.
    Pipe,
    /// Anything else.
    Failure(Failure),
}

impl Broken {
    fn of(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Pipe,
            _ => Self::Failure(at(path, error)),
        }
    }
}

impl<F: Into<Failure>> From<F> for Broken {
    fn from(failure: F) -> Self {
        Self::Failure(failure.into())
    }
}

fn at(path: &Path, error: &io::Error) -> Failure {
    format!("cannot write {}: {error}", path.display()).into()
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::Device(out) => out.write(bytes),
            Self::Temporary(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::Device(out) => out.flush(),
            Self::Temporary(out) => out.flush(),
        }
    }
}
