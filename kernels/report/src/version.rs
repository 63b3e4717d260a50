//! Two numbers with a dot: a compute capability, or a version of CUDA.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Two numbers with a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Version {
    /// Before the dot.
    pub major: u32,
    /// After the dot.
    pub minor: u32,
}

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionError(String);

impl Version {
    /// From its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From the driver's way of writing: 12090 is 12.9.
    #[must_use]
    pub fn from_cuda(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or_default();
        Self::new(number / 1000, number % 1000 / 10)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || VersionError(text.into());
        let (major, minor) = text.split_once('.').ok_or_else(error)?;
        let number = |part: &str| {
            // `u32` would take a sign, too.
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            digits
                .then(|| part.parse().ok())
                .flatten()
                .ok_or_else(error)
        };
        Ok(Self::new(number(major)?, number(minor)?))
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(
            f,
            "{text:?} is no version; write two numbers with a dot, such as 12.0"
        )
    }
}

impl std::error::Error for VersionError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_two_numbers_with_a_dot_and_nothing_else() {
        assert_eq!("12.0".parse(), Ok(Version::new(12, 0)));
        for text in ["", ".", "12", "12.", ".1", "12.4.1", "+1.0", "1.-1", "a.b"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_have_an_order_and_a_text() {
        assert!(Version::new(10, 0) > Version::new(8, 9));
        assert!(Version::new(12, 10) > Version::new(12, 9));
        assert_eq!(Version::from_cuda(12090).to_string(), "12.9");
        assert_eq!(Version::from_cuda(13010).to_string(), "13.1");
    }
}
