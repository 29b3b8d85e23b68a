/* Encodes and decodes images with an exported model, in C: no Python, and none of the package that trained it.

       encode MODEL/VERSION IMAGES [DECODED]

   IMAGES holds (n, H, W, C) float32 numbers in [0, 1], one image after the other, and nothing else: what NumPy's
   images.tofile(path) writes. Prints the code of each image on a line of its own; writes the images decoded from the
   codes to DECODED, in the same form. docs/serving.md has the command that builds it. TensorFlow logs to
   standard error; with the environment variable TF_CPP_MIN_LOG_LEVEL=2, only errors. */

#define PROGRAM "encode"
#include "saved_model.h"

static TF_Tensor *read_images(const char *path, const Model *model) {
    int64_t shape[4]; /* (-1, H, W, C) */
    TF_GraphGetTensorShape(model->graph, tensor(model, "encode", INPUTS, "images"), shape, 4, model->status);
    check(model->status, "the shape of the images");
    size_t image = sizeof(float) * shape[1] * shape[2] * shape[3];
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path, "cannot be read");
    long size = ftell(file);
    if (size <= 0 || size % image) {
        fprintf(stderr, PROGRAM ": %s: is %ld bytes long; it must hold whole %dx%dx%d images of float32, %zu bytes each\n", path, size,
                (int)shape[1], (int)shape[2], (int)shape[3], image);
        exit(1);
    }
    shape[0] = size / image;
    TF_Tensor *images = TF_AllocateTensor(TF_FLOAT, shape, 4, size);
    rewind(file);
    if (fread(TF_TensorData(images), size, 1, file) != 1) fail(path, "cannot be read");
    fclose(file);
    return images;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: encode MODEL/VERSION IMAGES [DECODED]\n");
        return 2;
    }
    Model model = load(argv[1]);
    TF_Tensor *images = read_images(argv[2], &model), *codes;
    run(&model, "encode", "images", images, 1, (const char *[]){"codes"}, &codes);
    print_codes(codes);
    if (argc == 4) {
        TF_Tensor *decoded;
        run(&model, "decode", "codes", codes, 1, (const char *[]){"images"}, &decoded);
        write_images(decoded, argv[3]);
        TF_DeleteTensor(decoded);
    }
    TF_DeleteTensor(codes);
    TF_DeleteTensor(images);
    unload(model);
    return 0;
}
