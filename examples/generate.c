/* Samples an exported model's prior and decodes the samples to images, in C: no Python, and none of the package that trained it.

       generate MODEL/VERSION N SEED [IMAGES]

   Prints the codes of N samples, each on a line of its own; writes their images to IMAGES: (N, H, W, C) float32 numbers
   in [0, 1], one image after the other, which NumPy's fromfile reads. Sample i has the seed (SEED, i), so the first
   samples of a SEED are the same for every N. docs/serving.md has the command that builds it. */

#include <errno.h>

#define PROGRAM "generate"
#include "saved_model.h"

/* The argument as an integer from `least` to 2^31 - 1. */
static int32_t integer(const char *name, const char *text, long least) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < least || value > INT32_MAX) {
        fprintf(stderr, "generate: %s is %s; it must be an integer from %ld to 2147483647\n", name, text, least);
        exit(2);
    }
    return (int32_t)value;
}

int main(int argc, char **argv) {
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: generate MODEL/VERSION N SEED [IMAGES]\n");
        return 2;
    }
    int32_t n = integer("N", argv[2], 1), seed = integer("SEED", argv[3], 0);
    Model model = load(argv[1]);
    TF_Tensor *seeds = TF_AllocateTensor(TF_INT32, (int64_t[]){n, 2}, 2, sizeof(int32_t) * 2 * n), *results[2];
    for (int32_t i = 0; i < n; i++) {
        ((int32_t *)TF_TensorData(seeds))[2 * i] = seed;
        ((int32_t *)TF_TensorData(seeds))[2 * i + 1] = i;
    }
    run(&model, "generate", "seed", seeds, 2, (const char *[]){"codes", "images"}, results);
    print_codes(results[0]);
    if (argc == 5) write_images(results[1], argv[4]);
    TF_DeleteTensor(results[0]);
    TF_DeleteTensor(results[1]);
    TF_DeleteTensor(seeds);
    unload(model);
    return 0;
}
