// A recurrent layer of one input and a dense layer of one output in RTNeural, as a C library.
// -DSIZES=8,16 says for how many units; benchmarks/streaming.py compiles it, once for each backend.
#include <RTNeural/RTNeural.h>
#include <memory>
#include <vector>

using Rows = std::vector<std::vector<float>>;

static Rows rows(const float *numbers, int count, int columns) {
    Rows made(count);
    for (auto &row : made) {
        row.assign(numbers, numbers + columns);
        numbers += columns;
    }
    return made;
}

struct Model {
    virtual ~Model() = default;
    virtual void run(const float *x, float *y, long count) = 0;
};

template <class Layer, int H> struct Made : Model {
    RTNeural::ModelT<float, 1, 1, Layer, RTNeural::DenseT<float, H, 1>> model;

    // Wx (1, gates H), Wh (H, gates H), b (biases, gates H)
    Made(int gates, const float *Wx, const float *Wh, const float *b, const float *W, float bias) {
        auto &layer = model.template get<0>();
        layer.setWVals(rows(Wx, 1, gates * H));
        layer.setUVals(rows(Wh, H, gates * H));
        if constexpr (std::is_same_v<Layer, RTNeural::LSTMLayerT<float, 1, H>>)
            layer.setBVals(std::vector<float>(b, b + gates * H));
        else
            layer.setBVals(rows(b, 2, gates * H));
        model.template get<1>().setWeights(rows(W, 1, H));
        model.template get<1>().setBias(&bias);
        model.reset();
    }

    void run(const float *x, float *y, long count) override {
        for (long t = 0; t < count; ++t)
            y[t] = model.forward(x + t);
    }
};

template <int... sizes>
static Model *make_one_of(bool gru, int H, const float *Wx, const float *Wh, const float *b,
                          const float *W, float bias) {
    Model *made = nullptr;
    auto one = [&](auto size) {
        constexpr int N = decltype(size)::value;
        if (N == H && gru)
            made = new Made<RTNeural::GRULayerT<float, 1, N>, N>(3, Wx, Wh, b, W, bias);
        else if (N == H)
            made = new Made<RTNeural::LSTMLayerT<float, 1, N>, N>(4, Wx, Wh, b, W, bias);
    };
    (one(std::integral_constant<int, sizes>()), ...);
    return made;
}

extern "C" {
void *make(int gru, int H, const float *Wx, const float *Wh, const float *b, const float *W,
           float bias) {
    return make_one_of<SIZES>(gru, H, Wx, Wh, b, W, bias);
}
void run(void *model, const float *x, float *y, long count) {
    static_cast<Model *>(model)->run(x, y, count);
}
}
