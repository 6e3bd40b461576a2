//! Text in SQL: `has_token(text, token)`.
//!
//! Not here: what DataFusion has for text already, and how filters make a search quick
//! ([`crate::needles`]).

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use memchr::memmem::Finder;
use store::filter::keys::is_token_byte;

use crate::error::{ErrorKind, QueryError, external};
use crate::render::type_name;

/// The functions of this file.
pub(crate) fn functions() -> [Arc<ScalarUDF>; 1] {
    [Arc::new(ScalarUDF::new_from_impl(HasToken { signature: Signature::user_defined(Volatility::Immutable) }))]
}

/// Whether a text has a token: a run of ASCII letters, digits and characters beyond ASCII with
/// nothing of that kind before or after it. Case matters.
#[derive(Debug, PartialEq, Eq, Hash)]
struct HasToken {
    signature: Signature,
}

/// A token to look for.
struct Token<'a> {
    finder: Finder<'a>,
}

impl<'a> Token<'a> {
    fn new(token: &'a str) -> std::result::Result<Self, QueryError> {
        if token.is_empty() || !token.bytes().all(is_token_byte) {
            let shown: String = token.chars().take(64).collect();
            return Err(QueryError::new(
                ErrorKind::BadQuery,
                format!("`{shown}` is not a token: a token has letters and digits and nothing else"),
            )
            .hint("look for each token with a has_token() of its own, or for the text with contains()"));
        }
        Ok(Self { finder: Finder::new(token) })
    }

    fn is_in(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let length = self.finder.needle().len();
        let continues = |at: Option<&u8>| at.is_some_and(|byte| is_token_byte(*byte));
        let mut from = 0;
        while let Some(found) = self.finder.find(&text[from..]) {
            let start = from + found;
            if !continues(start.checked_sub(1).and_then(|before| text.get(before)))
                && !continues(text.get(start + length))
            {
                return true;
            }
            // What goes on as the same run cannot start within it.
            from = start + length;
        }
        false
    }
}

impl ScalarUDFImpl for HasToken {
    fn name(&self) -> &str {
        "has_token"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        if arg_types.len() != 2 {
            return plan_err!("has_token() expects a text and a token, found {} arguments", arg_types.len());
        }
        let is_text = |data_type: &DataType| match data_type {
            DataType::Dictionary(_, value) => value.is_string(),
            other => other.is_string() || *other == DataType::Null,
        };
        match arg_types.iter().find(|data_type| !is_text(data_type)) {
            Some(other) => plan_err!("has_token() expects a text and a token, found {}", type_name(other)),
            None => Ok(vec![DataType::Utf8; 2]),
        }
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = args.args[0].to_array(args.number_rows)?;
        let texts = texts.as_string::<i32>();
        let found: BooleanArray = match &args.args[1] {
            ColumnarValue::Scalar(token) => {
                let Some(token) = token.try_as_str().flatten() else {
                    return Ok(ColumnarValue::Scalar(ScalarValue::Boolean(None)));
                };
                let token = Token::new(token).map_err(external)?;
                texts.iter().map(|text| text.map(|text| token.is_in(text))).collect()
            }
            ColumnarValue::Array(tokens) => {
                let rows = texts.iter().zip(tokens.as_string::<i32>());
                let rows = rows.map(|(text, token)| {
                    let Some((text, token)) = text.zip(token) else { return Ok(None) };
                    Token::new(token).map(|token| Some(token.is_in(text)))
                });
                rows.collect::<std::result::Result<_, _>>().map_err(external)?
            }
        };
        if found.len() == 1 && args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_))) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_a_whole_run() {
        for (text, token, expected) in [
            ("order 4711 lost", "4711", true),
            ("order 47110 lost", "4711", false),
            ("order x4711 lost, 4711", "4711", true),
            ("user_id=7", "id", true),
            ("Timeout", "timeout", false),
            ("größe", "gr", false),
            ("die größe", "größe", true),
            ("aaaa aa", "aa", true),
            ("aaaa", "aa", false),
            ("", "a", false),
        ] {
            assert_eq!(Token::new(token).unwrap().is_in(text), expected, "{text}: {token}");
        }
        for token in ["", " ", "a b", "a-b", "a_b", "%"] {
            assert!(Token::new(token).is_err(), "{token}");
        }
    }

    proptest! {
        #[test]
        fn tokens_are_those_between_separators(text in "[ab _é]{0,12}", token in "[abé]{1,3}") {
            let plain = text.split([' ', '_']).any(|found| found == token);
            prop_assert_eq!(Token::new(&token).unwrap().is_in(&text), plain);
        }
    }
}
