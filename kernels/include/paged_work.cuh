// The work of a step of paged_attention: what its work_list.cu writes and its kernel.cu reads.
#pragma once
#include "prelude.cuh"

// Packed rows (a row of a sequence times a query head of its group) of a tile of the prefill queue; those of the decode
// queue, which are also the unit of partial results.
#define TILE_ROWS 128
#define UNIT_ROWS 16
// Pieces of one tile at most.
#define MAX_SPLITS 64

// The list: a header, then items, those of the prefill queue first.
enum { NUM_PREFILL, NUM_DECODE, HEADER_INTS = 16 };
// The counters: items taken from either queue and blocks that are done, then arrivals at the first slot of each split
// tile.
enum { TAKEN_PREFILL, TAKEN_DECODE, NUM_DONE, QUEUE_COUNTERS };

// A tile of rows and a range of its keys: num_kv_heads pieces of work.
struct alignas(16) Item {
    int q_row;         // the sequence's first row
    int sequence;      // its block table
    int first, count;  // packed rows
    int seen;          // keys that the sequence's first row sees
    int begin, end;    // keys of this item
    int split, num_splits;
    int slot;  // of the tile's first head and split, in units of UNIT_ROWS packed rows
    int unused[2];
};
