//! Text of an exact number of tokens.

use std::fmt;
use std::path::Path;

use foveal_processor::Tokenizer;
use foveal_types::TokenId;

use crate::client::Client;
use crate::error::LoadError;
use crate::random::Random;

/// Ids of a vocabulary that are looked at; none of these families has more.
const MAX_IDS: u32 = 1 << 19;
/// Words of a vocabulary that are enough to draw from.
const MIN_WORDS: usize = 16;
/// Corrections of a text. One is rare, and each is right with more than even chances.
const MAX_CORRECTIONS: usize = 100;

/// Words that are one token in nearly every vocabulary: for servers whose vocabulary isn't at hand.
const COMMON_WORDS: &str = "\
    the of and to in is was for on that with as it by at from his an be this had not are but which one or he \
    have were all her she there been their first who also they has when time only two if some out no other into \
    its so what can up years him new about more may would after then these than most them such over many where \
    made between through world people could being under while during work school year well used just even how \
    here must state because three each same those both way any still long before great life house part number \
    water public small end place old day war little family city name power since head left right hand system \
    group high point large home early against light night land second white black red green blue open often \
    within several music book body game line field side late free form food river north south east west road \
    king son men women child company government area town";

/// What other words are tried behind.
const FIRST_WORD: &str = "the";

/// Who counts tokens.
enum Counter {
    File(Box<Tokenizer>),
    Server { client: Client, model: String },
}

/// Makes text of an exact number of tokens, from words drawn at random.
pub(crate) struct PromptText {
    counter: Counter,
    /// Without the space before them.
    words: Vec<String>,
}

impl fmt::Debug for PromptText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptText").field("num_words", &self.words.len()).finish_non_exhaustive()
    }
}

impl PromptText {
    /// With the `tokenizer.json` in this folder, or with this file.
    pub(crate) fn from_file(path: &Path) -> Result<Self, LoadError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let bytes = std::fs::read(&path).map_err(|error| LoadError::file(&path, &error))?;
        let tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|error| LoadError::Tokenizer { path, reason: error.to_string() })?;
        let mut words: Vec<String> = (0..MAX_IDS).filter_map(|id| word(tokenizer.token_bytes(TokenId(id)))).collect();
        if words.len() < MIN_WORDS {
            words = common_words();
        }
        Ok(Self { counter: Counter::File(Box::new(tokenizer)), words })
    }

    /// With the server's `/tokenize`, and those of the common words that are one token to it.
    pub(crate) fn from_server(client: Client, model: &str) -> Result<Self, LoadError> {
        let alone = client.count_tokens(model, FIRST_WORD)?;
        let mut words = Vec::new();
        for word in common_words() {
            if client.count_tokens(model, &format!("{FIRST_WORD} {word}"))? == alone + 1 {
                words.push(word);
            }
        }
        // A vocabulary that has none of them: then texts are of whole words, and not every length can be had.
        let words = if words.is_empty() { common_words() } else { words };
        Ok(Self { counter: Counter::Server { client, model: model.to_owned() }, words })
    }

    /// Text of exactly `len` tokens.
    pub(crate) fn text(&self, len: usize, random: &mut Random) -> Result<String, LoadError> {
        let mut draw = |num: usize| -> Vec<&str> {
            let words = (0..num).filter_map(|_| self.words.get(random.below(self.words.len())));
            words.map(String::as_str).collect()
        };
        let mut words = draw(len);
        let mut got = 0;
        for _ in 0..MAX_CORRECTIONS {
            let text = words.join(" ");
            got = self.count(&text)?;
            if got == len {
                return Ok(text);
            }
            if got < len {
                words.extend(draw(len - got));
            } else {
                // At least one word stays out, and another may take its place.
                words.truncate(words.len().saturating_sub(got - len));
                if words.is_empty() {
                    words = draw(1);
                }
            }
        }
        Err(LoadError::PromptLength { asked: len, got })
    }

    fn count(&self, text: &str) -> Result<usize, LoadError> {
        match &self.counter {
            Counter::File(tokenizer) => match tokenizer.encode(text) {
                Ok(ids) => Ok(ids.len()),
                Err(error) => Err(LoadError::Tokenizer { path: "tokenizer.json".into(), reason: error.to_string() }),
            },
            Counter::Server { client, model } => client.count_tokens(model, text),
        }
    }
}

fn common_words() -> Vec<String> {
    COMMON_WORDS.split_whitespace().map(str::to_owned).collect()
}

/// A token that is a space and two letters or more of ASCII: alone it is a word, and words side by side don't merge.
fn word(token: &[u8]) -> Option<String> {
    let letters = token.strip_prefix(b" ")?;
    let is_word = letters.len() >= 2 && letters.iter().all(u8::is_ascii_alphabetic);
    if is_word { String::from_utf8(letters.to_vec()).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_exact_length_and_all_different() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
        let text = PromptText::from_file(&file).unwrap();
        let tokenizer = Tokenizer::from_bytes(&std::fs::read(file.join("tokenizer.json")).unwrap()).unwrap();
        let mut seen = std::collections::HashSet::new();
        for len in [1, 2, 3, 17, 100, 1000] {
            for number in 0..20 {
                let made = text.text(len, &mut Random::new(len as u64, number)).unwrap();
                assert_eq!(tokenizer.encode(&made).unwrap().len(), len, "{made}");
                assert!(len < 17 || seen.insert(made));
            }
        }
    }

    #[test]
    fn words_are_whole_words() {
        assert_eq!(word(b" cat").as_deref(), Some("cat"));
        for token in [&b"cat"[..], b" a", b" ca3", b"  cat", b" \xc3\xa9\xc3\xa9", b""] {
            assert_eq!(word(token), None);
        }
        let common: std::collections::HashSet<_> = common_words().into_iter().collect();
        assert!(common.len() == common_words().len() && common.len() > MIN_WORDS);
    }

    /// With a vocabulary of full size, words are single tokens from the start.
    #[test]
    fn published_vocabulary() {
        let Some(assets) = std::env::var_os("FOVEAL_TEST_ASSETS") else {
            println!("skipped: FOVEAL_TEST_ASSETS is not set");
            return;
        };
        let text = PromptText::from_file(&Path::new(&assets).join("tokenizer")).unwrap();
        assert!(text.words.len() > 20_000, "{}", text.words.len());
        for len in [1, 10, 1000, 8000] {
            let made = text.text(len, &mut Random::new(0, len as u64)).unwrap();
            assert_eq!(text.count(&made).unwrap(), len);
            assert!(made.split(' ').count().abs_diff(len) <= 1 + len / 100);
        }
        let common = common_words().join(" ");
        assert_eq!(text.count(&common).unwrap(), common_words().len());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = PromptText::from_file(Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("/nowhere"));
    }
}
