//! Tests of one value each: strings, regular expressions, headers, addresses, path templates and structured values.
//!
//! All are compiled once, work on bytes and take time linear in what they read.

mod cidr;
mod header;
mod regex;
mod template;
mod text;
mod value;

pub use cidr::Cidr;
pub(crate) use header::{HeaderKey, cookie_value, cookies, header_name};
pub use header::{HeaderMatcher, QueryMatcher, Reading};
pub use regex::{Regex, Substitution};
pub use template::UriTemplate;
pub use text::StringMatcher;
pub use value::{MetadataMatcher, ValueMatcher};
