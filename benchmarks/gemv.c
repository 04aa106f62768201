// SPDX-License-Identifier: Apache-2.0
// A diffusion policy's inference in plain C, one product of a matrix and a vector after the other: the floor that a runtime is measured by.
// Weights lie input by input, so that the inner loop runs over outputs and any compiler turns it into vector instructions.

#include <math.h>
#include <string.h>

enum { MOST = 4096 };  // units of the widest layer

struct layer {
    int inputs, outputs;
    const float *weight, *bias;  // (inputs, outputs), (outputs)
};

struct policy {
    int condition_size, chunk_size, action_size, steps, hidden;
    const float *center, *half_width;         // of the observation, (condition_size)
    struct layer from_condition, from_chunk;  // no bias; bias
    const struct layer *trunk;                // hidden - 1 hidden layers, then the output
    const float *time_terms;                  // (steps, width)
    const float *tables;                      // (steps, 5): sqrt(1 - alpha_bar), sqrt(alpha_bar), weight of x_0, weight of x_k, std
    const float *action_center, *action_half_width, *low, *high;  // (action_size)
};

static float clip(float value, float low, float high) { return value < low ? low : value > high ? high : value; }

static void multiply(const struct layer *layer, const float *restrict start, const float *restrict x, float *restrict y) {
    memcpy(y, start, sizeof(float) * (size_t)layer->outputs);
    for (int i = 0; i < layer->inputs; i++) {
        const float *restrict row = layer->weight + (size_t)i * (size_t)layer->outputs;
        const float value = x[i];
        for (int j = 0; j < layer->outputs; j++) y[j] += value * row[j];
    }
}

// mish(x) = x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2)
static void mish(float *x, int count) {
    for (int i = 0; i < count; i++) {
        const float e = expf(x[i] < 20.0f ? x[i] : 20.0f), n = e * (e + 2.0f);
        x[i] *= n / (n + 2.0f);
    }
}

static const float zeros[MOST];

// noise: (steps, chunk_size), the start and the draws of all steps but the last; action: (chunk_size)
void infer(const struct policy *p, const float *observation, const float *noise, float *action) {
    static float condition[MOST], term[MOST], context[MOST], one[MOST], two[MOST], x[MOST];
    const int width = p->from_chunk.outputs;
    for (int i = 0; i < p->condition_size; i++) condition[i] = (observation[i] - p->center[i]) / p->half_width[i];
    multiply(&p->from_condition, zeros, condition, term);
    memcpy(x, noise, sizeof(float) * (size_t)p->chunk_size);
    for (int step = 0; step < p->steps; step++) {
        for (int i = 0; i < width; i++) context[i] = term[i] + p->time_terms[step * width + i] + p->from_chunk.bias[i];
        float *h = one, *next = two;
        multiply(&p->from_chunk, context, x, h);
        for (int layer = 0; layer < p->hidden; layer++) {
            const struct layer *trunk = p->trunk + layer;
            mish(h, trunk->inputs);
            multiply(trunk, trunk->bias, h, next);
            float *swap = h;
            h = next;
            next = swap;
        }
        const float *table = p->tables + 5 * step;
        for (int i = 0; i < p->chunk_size; i++) {
            const float start = clip((x[i] - table[0] * h[i]) / table[1], -1.0f, 1.0f);
            x[i] = table[2] * start + table[3] * x[i];
            if (step + 1 < p->steps) x[i] += table[4] * clip(noise[(step + 1) * p->chunk_size + i], -3.0f, 3.0f);
        }
    }
    for (int i = 0; i < p->chunk_size; i++) {
        const int j = i % p->action_size;
        action[i] = clip(p->action_center[j] + p->action_half_width[j] * x[i], p->low[j], p->high[j]);
    }
}
