//! What a page of the KV cache is known by.

use foveal_types::{ContentHash, TokenId};

/// All that a row's key and value depend on besides the rows before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowContent {
    pub(crate) token: TokenId,
    /// Along t, h and w.
    pub(crate) position: [i32; 3],
    /// The picture that a placeholder's row shows, and which of its embeddings.
    pub(crate) picture: Option<(ContentHash, usize)>,
}

/// A hash of everything in a full page and in all pages before it: two equal hashes mean equal keys and values. It is kept
/// whole, 32 bytes, since whoever could make two prompts meet in a part of it would read another one's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageHash([u8; 32]);

impl PageHash {
    /// The hash of a page that holds `rows` behind the page `parent`; `None` for a sequence's first page.
    pub(crate) fn new(parent: Option<Self>, rows: impl IntoIterator<Item = RowContent>) -> Self {
        let mut hasher = blake3::Hasher::new();
        // No page's hash is all zeros, as far as anyone knows how to make one.
        hasher.update(&parent.map_or([0; 32], |parent| parent.0));
        for RowContent { token, position, picture } in rows {
            // Rows of text and of pictures are told apart by the byte behind what both have, so that no two series of rows
            // are written alike.
            hasher.update(&token.0.to_le_bytes());
            for axis in position {
                hasher.update(&axis.to_le_bytes());
            }
            match picture {
                None => hasher.update(&[0]),
                Some((hash, row)) => hasher.update(&[1]).update(&hash.0).update(&(row as u64).to_le_bytes()),
            };
        }
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(token: u32) -> RowContent {
        RowContent { token: TokenId(token), position: [1, 2, 3], picture: None }
    }

    #[test]
    fn everything_in_a_row_counts() {
        let picture = |hash: u8, row| Some((ContentHash([hash; 32]), row));
        let rows = [
            row(1),
            row(2),
            RowContent { position: [2, 2, 3], ..row(1) },
            RowContent { position: [1, 3, 3], ..row(1) },
            RowContent { position: [1, 2, 4], ..row(1) },
            RowContent { picture: picture(1, 0), ..row(1) },
            RowContent { picture: picture(2, 0), ..row(1) },
            RowContent { picture: picture(1, 1), ..row(1) },
        ];
        let hashes: Vec<PageHash> = rows.iter().map(|&row| PageHash::new(None, [row])).collect();
        for (i, hash) in hashes.iter().enumerate() {
            assert_eq!(PageHash::new(None, [rows[i]]), *hash);
            assert!(!hashes[..i].contains(hash), "{:?}", rows[i]);
        }
    }

    #[test]
    fn the_pages_before_count_and_so_does_the_order() {
        let first = PageHash::new(None, [row(1)]);
        assert_ne!(PageHash::new(Some(first), [row(2)]), PageHash::new(None, [row(2)]));
        assert_ne!(PageHash::new(Some(first), [row(2)]), PageHash::new(Some(PageHash::new(None, [row(3)])), [row(2)]));
        assert_ne!(PageHash::new(None, [row(1), row(2)]), PageHash::new(None, [row(2), row(1)]));
    }

    #[test]
    fn no_bit_of_a_picture_is_left_out() {
        let with = |hash| PageHash::new(None, [RowContent { picture: Some((ContentHash(hash), 0)), ..row(1) }]);
        for byte in 0..32 {
            let mut other = [0; 32];
            other[byte] = 1;
            assert_ne!(with([0; 32]), with(other), "byte {byte}");
        }
    }
}
