//! Stop strings in a stream of text: cut before the first that completes, hold back what may become one.

/// Looks for several strings at once, each by Knuth, Morris and Pratt's automaton: a constant number of steps per byte on
/// average, whatever the strings are.
#[derive(Clone, Debug)]
pub(crate) struct StopStrings {
    automata: Vec<Automaton>,
    /// Text that isn't handed out yet: it ends with a beginning of some stop string.
    held: String,
    stopped: bool,
}

/// One stop string.
#[derive(Clone, Debug)]
struct Automaton {
    bytes: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the first `n` bytes that is also their suffix.
    fallback: Vec<usize>,
    /// How many bytes of the string the text ends with.
    matched: usize,
}

impl Automaton {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut matched = 0;
        for i in 1..bytes.len() {
            while matched > 0 && bytes[i] != bytes[matched] {
                matched = fallback[matched];
            }
            matched += usize::from(bytes[i] == bytes[matched]);
            fallback[i + 1] = matched;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Takes one byte; true if the string is complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

impl StopStrings {
    pub(crate) fn new(stops: &[String]) -> Self {
        // An empty stop string would end every answer before it begins; requests with one are refused earlier.
        let automata = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Automaton::new(stop)).collect();
        Self { automata, held: String::new(), stopped: false }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes text and gives what is certain. The stop string that completes first counts, of two that complete together
    /// the longer; so the cut doesn't depend on how the text came in pieces.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut longest = None;
            for automaton in &mut self.automata {
                if automaton.step(byte) {
                    longest = longest.max(Some(automaton.bytes.len()));
                }
            }
            if let Some(len) = longest {
                self.stopped = true;
                self.held.truncate((before + i + 1).saturating_sub(len));
                return std::mem::take(&mut self.held);
            }
        }
        let hold = self.automata.iter().map(|a| a.matched).max().unwrap_or(0);
        // A stop string begins with a character's first byte, so this is a character's boundary.
        let rest = self.held.split_off(self.held.len().saturating_sub(hold));
        std::mem::replace(&mut self.held, rest)
    }

    /// Gives what was held back.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
