/* Encodes and decodes images with an exported model, in C: no Python, and none of the package that trained it.

       encode MODEL/VERSION IMAGES [DECODED]

   IMAGES holds (n, H, W, C) float32 numbers in [0, 1], one image after the other, and nothing else: what NumPy's
   images.tofile(path) writes. Prints the code of each image on a line of its own; writes the images decoded from the
   codes to DECODED, in the same form. docs/serving.md has the command that builds it. TensorFlow writes what it has to
   say to standard error; the environment variable TF_CPP_MIN_LOG_LEVEL=2 keeps all but errors away.

   TF_LoadSessionFromSavedModel is the loader that TensorFlow Serving uses, too. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

static void fail(const char *what, const char *why) {
    fprintf(stderr, "encode: %s: %s\n", what, why);
    exit(1);
}

static void check(const TF_Status *status, const char *what) {
    if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* --- Which tensors a signature means -------------------------------------------------------------------------------

   The names of the graph's tensors change from export to export; the signatures map our names to them:
       MetaGraphDef.signature_def[signature].inputs or .outputs[alias].name
   Loading hands the MetaGraphDef over as a serialised protocol buffer. It is a list of fields, each a key
   (number * 8 + type) and a value; a map is a list of entries {1: key, 2: value}. */

enum { SIGNATURE_DEF = 5, INPUTS = 1, OUTPUTS = 2, TENSOR_NAME = 1, MAP_KEY = 1, MAP_VALUE = 2 };

typedef struct {
    const uint8_t *at, *end;
} Message;

static uint64_t varint(Message *m) {
    uint64_t value = 0;
    for (int shift = 0; m->at < m->end && shift < 64; shift += 7) {
        uint8_t byte = *m->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    fail("the model", "its signatures cannot be read");
    return 0;
}

/* The next field of `m` with this number, which holds bytes; 0 at the end. */
static int next(Message *m, uint64_t number, Message *field) {
    while (m->at < m->end) {
        uint64_t key = varint(m), size = 0;
        switch (key & 7) {
            case 0: varint(m); break;
            case 1: size = 8; break;
            case 2: size = varint(m); break;
            case 5: size = 4; break;
            default: fail("the model", "its signatures cannot be read");
        }
        if (size > (uint64_t)(m->end - m->at)) fail("the model", "its signatures cannot be read");
        field->at = m->at;
        field->end = m->at += size;
        if (key == number * 8 + 2) return 1;
    }
    return 0;
}

/* The value at `key` in the map that is field `number` of `m`. */
static Message lookup(Message m, uint64_t number, const char *key) {
    Message entry, found, value;
    while (next(&m, number, &entry)) {
        Message names = entry, values = entry;
        if (next(&names, MAP_KEY, &found) && (size_t)(found.end - found.at) == strlen(key) &&
            !memcmp(found.at, key, strlen(key)) && next(&values, MAP_VALUE, &value))
            return value;
    }
    fail(key, "no signature, input or output of the model has this name");
    return m;
}

static TF_Output tensor(TF_Graph *graph, const TF_Buffer *meta_graph, const char *signature, int side, const char *alias) {
    Message all = {meta_graph->data, (const uint8_t *)meta_graph->data + meta_graph->length}, field;
    Message info = lookup(lookup(all, SIGNATURE_DEF, signature), side, alias);
    char name[512], *colon;
    if (!next(&info, TENSOR_NAME, &field)) fail(alias, "has no tensor");
    snprintf(name, sizeof name, "%.*s", (int)(field.end - field.at), (const char *)field.at);
    if ((colon = strchr(name, ':'))) *colon = 0; /* "operation:index" */
    TF_Output output = {TF_GraphOperationByName(graph, name), colon ? atoi(colon + 1) : 0};
    if (!output.oper) fail(name, "is not in the graph");
    return output;
}

/* --- Reading, running, printing ------------------------------------------------------------------------------------ */

static TF_Tensor *read_images(const char *path, TF_Graph *graph, TF_Output placeholder, TF_Status *status) {
    int64_t shape[4]; /* (-1, H, W, C) */
    TF_GraphGetTensorShape(graph, placeholder, shape, 4, status);
    check(status, "the shape of the images");
    size_t image = sizeof(float) * shape[1] * shape[2] * shape[3];
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path, "cannot be read");
    long size = ftell(file);
    if (size <= 0 || size % image) {
        fprintf(stderr, "encode: %s: has %ld bytes; %dx%dx%d images of float32 have %zu each\n", path, size,
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

static TF_Tensor *run(TF_Session *session, TF_Output input, TF_Tensor *value, TF_Output output, TF_Status *status) {
    TF_Tensor *result = NULL;
    TF_SessionRun(session, NULL, &input, &value, 1, &output, &result, 1, NULL, 0, NULL, status);
    check(status, "running the model");
    return result;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: encode MODEL/VERSION IMAGES [DECODED]\n");
        return 2;
    }
    TF_Status *status = TF_NewStatus();
    TF_Graph *graph = TF_NewGraph();
    TF_Buffer *meta_graph = TF_NewBuffer();
    TF_SessionOptions *options = TF_NewSessionOptions();
    const char *tag = "serve";
    TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], &tag, 1, graph, meta_graph, status);
    check(status, argv[1]);

    TF_Output images_in = tensor(graph, meta_graph, "encode", INPUTS, "images");
    TF_Tensor *images = read_images(argv[2], graph, images_in, status);
    TF_Tensor *codes = run(session, images_in, images, tensor(graph, meta_graph, "encode", OUTPUTS, "codes"), status);

    int64_t width = TF_Dim(codes, 1), numbers = TF_Dim(codes, 0) * width;
    for (int64_t i = 0; i < numbers; i++) {
        if (TF_TensorType(codes) == TF_INT32)
            printf("%d", ((int32_t *)TF_TensorData(codes))[i]);
        else /* a Gaussian latent */
            printf("%.9g", ((float *)TF_TensorData(codes))[i]);
        putchar((i + 1) % width ? ' ' : '\n');
    }

    if (argc == 4) {
        TF_Tensor *decoded = run(session, tensor(graph, meta_graph, "decode", INPUTS, "codes"), codes,
                                 tensor(graph, meta_graph, "decode", OUTPUTS, "images"), status);
        FILE *file = fopen(argv[3], "wb");
        if (!file || fwrite(TF_TensorData(decoded), TF_TensorByteSize(decoded), 1, file) != 1 || fclose(file))
            fail(argv[3], "cannot be written");
        TF_DeleteTensor(decoded);
    }

    TF_DeleteTensor(codes);
    TF_DeleteTensor(images);
    TF_CloseSession(session, status);
    TF_DeleteSession(session, status);
    TF_DeleteSessionOptions(options);
    TF_DeleteBuffer(meta_graph);
    TF_DeleteGraph(graph);
    TF_DeleteStatus(status);
    return 0;
}
