/* An exported model in C: what encode.c and generate.c share. The includer first defines PROGRAM, its name for messages.

   TF_LoadSessionFromSavedModel is the loader that TensorFlow Serving uses, too. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

typedef struct {
    TF_Status *status;
    TF_Graph *graph;
    TF_Buffer *meta_graph;
    TF_Session *session;
} Model;

static void fail(const char *what, const char *why) {
    fprintf(stderr, PROGRAM ": %s: %s\n", what, why);
    exit(1);
}

static void check(const TF_Status *status, const char *what) {
    if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static Model load(const char *version) {
    Model model = {TF_NewStatus(), TF_NewGraph(), TF_NewBuffer(), NULL};
    TF_SessionOptions *options = TF_NewSessionOptions();
    const char *tag = "serve";
    model.session =
        TF_LoadSessionFromSavedModel(options, NULL, version, &tag, 1, model.graph, model.meta_graph, model.status);
    check(model.status, version);
    TF_DeleteSessionOptions(options);
    return model;
}

static void unload(Model model) {
    TF_CloseSession(model.session, model.status);
    TF_DeleteSession(model.session, model.status);
    TF_DeleteBuffer(model.meta_graph);
    TF_DeleteGraph(model.graph);
    TF_DeleteStatus(model.status);
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

static TF_Output tensor(const Model *model, const char *signature, int side, const char *alias) {
    const TF_Buffer *meta_graph = model->meta_graph;
    Message all = {meta_graph->data, (const uint8_t *)meta_graph->data + meta_graph->length}, field;
    Message info = lookup(lookup(all, SIGNATURE_DEF, signature), side, alias);
    char name[512], *colon;
    if (!next(&info, TENSOR_NAME, &field)) fail(alias, "has no tensor");
    snprintf(name, sizeof name, "%.*s", (int)(field.end - field.at), (const char *)field.at);
    if ((colon = strchr(name, ':'))) *colon = 0; /* "operation:index" */
    TF_Output output = {TF_GraphOperationByName(model->graph, name), colon ? atoi(colon + 1) : 0};
    if (!output.oper) fail(name, "is not in the graph");
    return output;
}

/* --- Running, printing, writing ------------------------------------------------------------------------------------ */

/* `count` outputs of a signature that takes one tensor, named by `aliases`, into `results`. */
static void run(const Model *model, const char *signature, const char *input, TF_Tensor *value, int count,
                const char *const *aliases, TF_Tensor **results) {
    TF_Output in = tensor(model, signature, INPUTS, input), out[4];
    for (int i = 0; i < count; i++) out[i] = tensor(model, signature, OUTPUTS, aliases[i]);
    TF_SessionRun(model->session, NULL, &in, &value, 1, out, results, count, NULL, 0, NULL, model->status);
    check(model->status, "running the model");
}

/* Each code on a line of its own. */
static void print_codes(const TF_Tensor *codes) {
    int64_t width = TF_Dim(codes, 1), numbers = TF_Dim(codes, 0) * width;
    for (int64_t i = 0; i < numbers; i++) {
        if (TF_TensorType(codes) == TF_INT32)
            printf("%d", ((int32_t *)TF_TensorData(codes))[i]);
        else /* a Gaussian latent */
            printf("%.9g", ((float *)TF_TensorData(codes))[i]);
        putchar((i + 1) % width ? ' ' : '\n');
    }
}

static void write_images(const TF_Tensor *images, const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(TF_TensorData(images), TF_TensorByteSize(images), 1, file) != 1 || fclose(file))
        fail(path, "cannot be written");
}
