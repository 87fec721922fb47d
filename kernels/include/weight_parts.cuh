// Weights of a product that lie in up to three parts, in tiles of so many rows, none of which is of two parts.
#pragma once
#include "prelude.cuh"

// Rows of one part; row i of the part is column `part_column` + i of the product. W says where a part lies.
template <typename W> struct WeightTile {
    W weight;
    const f32_t* scales;
    int first_row, num_rows, part_column;
};

// Parts that there aren't have no rows.
template <typename W, int TILE_ROWS> struct WeightParts {
    W weight[3];
    const f32_t* scales[3];
    int rows[3];

    __device__ __forceinline__ static int tiles_of(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    __device__ __forceinline__ int num_tiles() const {
        return tiles_of(rows[0]) + tiles_of(rows[1]) + tiles_of(rows[2]);
    }
    __device__ __forceinline__ WeightTile<W> tile(int index) const {
        const int tiles0 = tiles_of(rows[0]), tiles1 = tiles_of(rows[1]);
        if (index >= tiles0 + tiles1) {
            return {weight[2], scales[2], (index - tiles0 - tiles1) * TILE_ROWS, rows[2], rows[0] + rows[1]};
        }
        if (index >= tiles0) return {weight[1], scales[1], (index - tiles0) * TILE_ROWS, rows[1], rows[0]};
        return {weight[0], scales[0], index * TILE_ROWS, rows[0], 0};
    }
};
