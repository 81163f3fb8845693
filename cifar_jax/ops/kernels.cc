// The operations of a training step on a CPU, in bfloat16 or float32, as custom calls of XLA.
//
// XLA converts bfloat16 to float32 and back around each operation and has no convolution in half
// precision on CPUs; oneDNN has. Everything between convolutions is a loop over the rows of
// [rows, channels]: either type in memory, float32 in registers, each value read as few times as
// its dependencies allow.
//
// Sums are over a fixed number of parts, added up in order, so that a result does not depend on the
// number of threads. Compiled at its first use by native.py, for the machine it runs on.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Float = ffi::Buffer<ffi::F32>;
using FloatOut = ffi::Result<Float>;
using Byte = ffi::Buffer<ffi::S8>;

// XLA may run two calls at once, and each uses all cores.
std::mutex one_at_a_time;

// bfloat16: the upper half of a float32, rounded to the nearest, ties to even.
struct bf16 {
  uint16_t bits;
  operator float() const {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  static bf16 of(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    return {uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
  }
};

template <class T>
T rounded(float value) {
  if constexpr (std::is_same_v<T, bf16>)
    return bf16::of(value);
  else
    return value;
}

// Images or a layer's values: T is bf16 or float.
template <class T>
using Array = ffi::Buffer<std::is_same_v<T, bf16> ? ffi::BF16 : ffi::F32>;
template <class T>
using Out = ffi::Result<Array<T>>;

template <class T>
const T* in(const Array<T>& buffer) { return static_cast<const T*>(buffer.untyped_data()); }
template <class T>
T* out(Out<T>& buffer) { return static_cast<T*>(buffer->untyped_data()); }

constexpr int64_t kLanes = 16;  // float32 in a register

// x as [count, channels]. WideRows takes several rows as one where that fills the registers: loops
// over 24 channels would end in 8 single values.
struct Rows {
  int64_t count, channels;
  template <class Buffer>
  explicit Rows(const Buffer& x)
      : channels(x.dimensions().back()) { count = x.element_count() / channels; }
};

struct WideRows : Rows {
  int64_t together = 1;
  template <class Buffer>
  explicit WideRows(const Buffer& x) : Rows(x) {
    const int64_t fill = kLanes / std::gcd(channels, kLanes);
    if (count % fill == 0) together = fill;
    count /= together;
    channels *= together;
  }
  std::vector<float> spread(const Float& values) const {
    std::vector<float> result;
    for (int64_t i = 0; i < together; ++i)
      result.insert(result.end(), values.typed_data(), values.typed_data() + channels / together);
    return result;
  }
  void gather(const float* sums, float* result) const {
    const int64_t each = channels / together;
    for (int64_t c = 0; c < each; ++c) {
      result[c] = 0.0f;
      for (int64_t i = 0; i < together; ++i) result[c] += sums[i * each + c];
    }
  }
};

constexpr int kParts = 64;

// visit(first, last, part) of each part of [0, count), on all cores. A thread that is done with a
// part takes the next one: with fixed shares all would wait for a core that also has other work. No
// number depends on which thread that is.
template <class Visit>
void in_parts(int64_t count, Visit visit) {
#pragma omp parallel for schedule(dynamic)
  for (int part = 0; part < kParts; ++part)
    visit(count * part / kParts, count * (part + 1) / kParts, part);
}

// Sums of each part, and their total.
struct Sums {
  int64_t size;
  std::vector<float> parts;
  explicit Sums(int64_t size) : size(size), parts(kParts * size, 0.0f) {}
  float* of(int part) { return &parts[part * size]; }
  void write(float* total) const {
    std::fill_n(total, size, 0.0f);
    for (int part = 0; part < kParts; ++part)
      for (int64_t c = 0; c < size; ++c) total[c] += parts[part * size + c];
  }
};

// -- convolution, stride 1 --

using dnnl::memory;
using Type = memory::data_type;
using Layout = memory::format_tag;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory over(const memory::desc& desc, const void* data) {
  return memory(desc, cpu(), const_cast<void*>(data));
}

// [B, H, W, C] with a kernel [h, w, C, D], zero-padded by `low` before (top, left) and as much as
// the output's size asks for after. A pass is made at its first call: oneDNN generates code for the
// shapes.
template <class T>
struct Conv {
  static constexpr Type kType = std::is_same_v<T, bf16> ? Type::bf16 : Type::f32;
  std::array<int64_t, 4> x, kernel, y;
  std::array<int64_t, 2> low;
  bool operator<(const Conv& other) const {
    return std::tie(x, kernel, y, low) < std::tie(other.x, other.kernel, other.y, other.low);
  }

  memory::desc images(const std::array<int64_t, 4>& shape) const {
    return {{shape[0], shape[3], shape[1], shape[2]}, kType, Layout::nhwc};
  }
  memory::desc kernels(Type type, Layout layout) const {
    return {{kernel[3], kernel[2], kernel[0], kernel[1]}, type, layout};
  }
  memory::dims before() const { return {low[0], low[1]}; }
  memory::dims after() const {
    return {y[1] + kernel[0] - 1 - x[1] - low[0], y[2] + kernel[1] - 1 - x[2] - low[1]};
  }
  dnnl::convolution_forward::primitive_desc forward() const {
    return {cpu(), dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct,
            images(x), kernels(kType, Layout::any), images(y), {1, 1}, before(), after()};
  }
  dnnl::convolution_backward_data::primitive_desc backward_data() const {
    return {cpu(), dnnl::algorithm::convolution_direct, images(x),
            kernels(kType, Layout::any), images(y), {1, 1}, before(), after(), forward()};
  }
  // With its scratch memory from outside, so that several threads can run it at once.
  dnnl::convolution_backward_weights::primitive_desc backward_weights() const {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return {cpu(), dnnl::algorithm::convolution_direct, images(x),
            kernels(Type::f32, Layout::any), images(y), {1, 1}, before(), after(), forward(),
            attributes};
  }
};

template <class Shape>
std::array<int64_t, 4> four(const Shape& shape) {
  return {shape[0], shape[1], shape[2], shape[3]};
}

// A pass of a convolution, and its kernel in oneDNN's own layout on the way in or out.
struct Pass {
  dnnl::primitive run;
  memory::desc outer, inner;  // of the kernel
  dnnl::reorder reorder;
  memory::desc scratch = {};
};

template <class T>
using Passes = std::map<Conv<T>, std::unique_ptr<Pass>>;

template <class T, class Make>
Pass& pass_of(Passes<T>& made, const Conv<T>& conv, Make make) {
  auto& pass = made[conv];
  if (!pass) pass = std::make_unique<Pass>(make());
  return *pass;
}

// A pass that multiplies with a kernel: a float32 one, rounded to T.
template <class Primitive, class T, class Desc>
void multiply(const Conv<T>& conv, Desc (Conv<T>::*describe)() const, const Float& kernel,
              std::unordered_map<int, memory> arguments) {
  static Passes<T> made;
  Pass& pass = pass_of(made, conv, [&] {
    Desc desc = (conv.*describe)();
    auto outer = conv.kernels(Type::f32, Layout::hwio), inner = desc.weights_desc();
    return Pass{Primitive(desc), outer, inner, dnnl::reorder({cpu(), outer, cpu(), inner})};
  });
  dnnl::stream stream(cpu());
  memory given = over(pass.outer, kernel.untyped_data()), own(pass.inner, cpu());
  pass.reorder.execute(stream, given, own);
  arguments.emplace(DNNL_ARG_WEIGHTS, own);
  pass.run.execute(stream, arguments);
  stream.wait();
}

template <class Work>
ffi::Error guarded(Work work) {
  try {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    work();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

// y = x * kernel.
template <class T>
ffi::Error conv_forward(Array<T> x, Float kernel, Out<T> y, int64_t top, int64_t left) {
  return guarded([&] {
    Conv<T> conv{
        four(x.dimensions()), four(kernel.dimensions()), four(y->dimensions()), {top, left}};
    multiply<dnnl::convolution_forward>(
        conv, &Conv<T>::forward, kernel,
        {{DNNL_ARG_SRC, over(conv.images(conv.x), x.untyped_data())},
         {DNNL_ARG_DST, over(conv.images(conv.y), y->untyped_data())}});
  });
}

// The gradient of x.
template <class T>
ffi::Error conv_backward_data(Array<T> dy, Float kernel, Out<T> dx, int64_t top, int64_t left) {
  return guarded([&] {
    Conv<T> conv{
        four(dx->dimensions()), four(kernel.dimensions()), four(dy.dimensions()), {top, left}};
    multiply<dnnl::convolution_backward_data>(
        conv, &Conv<T>::backward_data, kernel,
        {{DNNL_ARG_DIFF_DST, over(conv.images(conv.y), dy.untyped_data())},
         {DNNL_ARG_DIFF_SRC, over(conv.images(conv.x), dx->untyped_data())}});
  });
}

// A pass of one thread, for some images.
template <class T>
Pass backward_kernel(const Conv<T>& conv) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  auto desc = conv.backward_weights();
  auto outer = conv.kernels(Type::f32, Layout::hwio), inner = desc.diff_weights_desc();
  Pass pass{dnnl::convolution_backward_weights(desc), outer, inner,
            dnnl::reorder({cpu(), inner, cpu(), outer}), desc.scratchpad_desc()};
  omp_set_num_threads(threads);
  return pass;
}

// The gradient of the kernel, summed and given in float32.
//
// Each thread has its images, and a sum of its own: oneDNN's threads share them, and spin where they
// wait for each other. With another process on the same cores that is 50 times slower.
template <class T>
ffi::Error conv_backward_kernel(Array<T> x, Array<T> dy, FloatOut dkernel, int64_t top,
                                int64_t left) {
  return guarded([&] {
    static Passes<T> made;
    static const int64_t threads = omp_get_max_threads();  // as long as the process lives
    const Conv<T> all{
        four(x.dimensions()), four(dkernel->dimensions()), four(dy.dimensions()), {top, left}};
    const int64_t images = all.x[0], parts = std::min(threads, images);
    const int64_t size = dkernel->element_count();
    const auto of_part = [&](int64_t part) {
      Conv<T> conv = all;
      conv.x[0] = conv.y[0] = images * (part + 1) / parts - images * part / parts;
      return conv;
    };
    std::vector<Pass*> passes;
    for (int64_t part = 0; part < parts; ++part)
      passes.push_back(
          &pass_of(made, of_part(part), [&] { return backward_kernel(of_part(part)); }));
    std::vector<float> sums(parts * size);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
      const Pass& pass = *passes[part];
      const Conv<T> conv = of_part(part);
      const int64_t first = images * part / parts;
      const T* of_x = in<T>(x) + first * (x.element_count() / images);
      const T* of_dy = in<T>(dy) + first * (dy.element_count() / images);
      dnnl::stream stream(cpu());
      memory own(pass.inner, cpu()), scratch(pass.scratch, cpu());
      memory wanted = over(pass.outer, &sums[part * size]);
      pass.run.execute(stream, {{DNNL_ARG_SRC, over(conv.images(conv.x), of_x)},
                                {DNNL_ARG_DIFF_DST, over(conv.images(conv.y), of_dy)},
                                {DNNL_ARG_DIFF_WEIGHTS, own},
                                {DNNL_ARG_SCRATCHPAD, scratch}});
      pass.reorder.execute(stream, own, wanted);
      stream.wait();
    }
    float* total = static_cast<float*>(dkernel->untyped_data());
    in_parts(size, [&](int64_t first, int64_t last, int) {
      for (int64_t k = first; k < last; ++k) {
        total[k] = sums[k];
        for (int64_t part = 1; part < parts; ++part) total[k] += sums[part * size + k];
      }
    });
  });
}

// -- max pooling --

template <class Value>
void keep_larger(const Value* __restrict__ values, float* __restrict__ top, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const float value = values[k];
    const bool wins = value > top[k] || value != value;
    top[k] = wins ? value : top[k];
  }
}

// Windows begin at multiples of the stride and end at the edge at the latest. Of each, the largest
// value, a NaN before all.
template <class T>
ffi::Error max_pool(Array<T> x, Out<T> y, int64_t window, int64_t stride) {
  return guarded([&] {
    auto from = x.dimensions(), to = y->dimensions();
    const int64_t height = from[1], width = from[2], channels = from[3];
    const int64_t rows = to[1], columns = to[2];
    T* best = out<T>(y);
    in_parts(from[0] * rows, [&](int64_t first, int64_t last, int) {
      std::vector<float> tops(width * channels), all(channels);
      for (int64_t line = first; line < last; ++line) {
        const int64_t image = line / rows, row = line % rows * stride;
        // Down the columns of the image first, then along what is left of its rows.
        std::fill(tops.begin(), tops.end(), -INFINITY);
        for (int64_t i = 0; i < window && row + i < height; ++i)
          keep_larger(in<T>(x) + (image * height + row + i) * width * channels, tops.data(),
                      width * channels);
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t start = column * stride, end = std::min(start + window, width);
          std::copy_n(&tops[start * channels], channels, all.data());
          for (int64_t j = start + 1; j < end; ++j)
            keep_larger(&tops[j * channels], all.data(), channels);
          T* to = best + (line * columns + column) * channels;
          for (int64_t c = 0; c < channels; ++c) to[c] = rounded<T>(all[c]);
        }
      }
    });
  });
}

// The same, and the place of that value in the window, in row-major order; the first of equal ones.
template <class T>
ffi::Error max_pool_forward(Array<T> x, Out<T> y, ffi::Result<Byte> winner, int64_t window,
                            int64_t stride) {
  return guarded([&] {
    auto from = x.dimensions(), to = y->dimensions();
    const int64_t height = from[1], width = from[2], channels = from[3];
    const int64_t rows = to[1], columns = to[2];
    T* best = out<T>(y);
    int8_t* won = static_cast<int8_t*>(winner->untyped_data());
    in_parts(from[0] * rows, [&](int64_t first, int64_t last, int) {
      std::vector<float> largest(channels);
      std::vector<int32_t> places(channels);
      for (int64_t line = first; line < last; ++line) {
        const int64_t image = line / rows, row = line % rows * stride;
        for (int64_t column = 0; column < columns; ++column) {
          std::fill_n(largest.data(), channels, -INFINITY);
          std::fill_n(places.data(), channels, 0);
          for (int64_t i = 0; i < window && row + i < height; ++i)
            for (int64_t j = 0; j < window && column * stride + j < width; ++j) {
              const T* at =
                  in<T>(x) + ((image * height + row + i) * width + column * stride + j) * channels;
              const int32_t place = i * window + j;
              float* __restrict__ top = largest.data();
              int32_t* __restrict__ index = places.data();
              for (int64_t c = 0; c < channels; ++c) {
                const float value = at[c];
                const bool wins = value > top[c] || value != value;
                top[c] = wins ? value : top[c];
                index[c] = wins ? place : index[c];
              }
            }
          const int64_t start = (line * columns + column) * channels;
          for (int64_t c = 0; c < channels; ++c) best[start + c] = rounded<T>(largest[c]);
          for (int64_t c = 0; c < channels; ++c) won[start + c] = int8_t(places[c]);
        }
      }
    });
  });
}

// Each value's gradient is the sum of those of the windows that it won.
template <class T>
ffi::Error max_pool_backward(Array<T> dy, Byte winner, Out<T> dx, int64_t window, int64_t stride) {
  return guarded([&] {
    auto from = dy.dimensions(), to = dx->dimensions();
    const int64_t rows = from[1], columns = from[2], channels = from[3];
    const int64_t height = to[1], width = to[2], size = height * width * channels;
    const int8_t* won = winner.typed_data();
    T* result = out<T>(dx);
    in_parts(from[0], [&](int64_t first, int64_t last, int) {
      std::vector<float> sums(size);
      for (int64_t image = first; image < last; ++image) {
        std::fill_n(sums.data(), size, 0.0f);
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t column = 0; column < columns; ++column) {
            const int64_t start = ((image * rows + row) * columns + column) * channels;
            const T* __restrict__ gradient = in<T>(dy) + start;
            const int8_t* __restrict__ place = won + start;
            for (int64_t i = 0; i < window && row * stride + i < height; ++i)
              for (int64_t j = 0; j < window && column * stride + j < width; ++j) {
                float* __restrict__ sum =
                    &sums[((row * stride + i) * width + column * stride + j) * channels];
                const int8_t here = int8_t(i * window + j);
                for (int64_t c = 0; c < channels; ++c)
                  sum[c] += place[c] == here ? float(gradient[c]) : 0.0f;
              }
          }
        for (int64_t k = 0; k < size; ++k) result[image * size + k] = rounded<T>(sums[k]);
      }
    });
  });
}

// -- bias, ReLU and local response normalisation --

constexpr int64_t kRadius = 4;

// Sums over the channels within the radius: `values` has as many zeros before and after.
void band_sum(const float* __restrict__ values, float* __restrict__ sums, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    const float* v = values + c;
    sums[c] = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])) + v[8];
  }
}

// y = a · n^-0.75 with a = max(x + bias, 0) and n = 1 + alpha · band sum of a².
template <class T>
ffi::Error relu_lrn_forward(Array<T> x, Float bias, Out<T> y, float alpha) {
  return guarded([&] {
    const Rows all(x);
    const int64_t channels = all.channels;
    const float* offset = bias.typed_data();
    T* result = out<T>(y);
    in_parts(all.count, [&](int64_t first, int64_t last, int) {
      std::vector<float> a(channels), squares(channels + 2 * kRadius), sums(channels);
      for (int64_t row = first; row < last; ++row) {
        const T* at = in<T>(x) + row * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float value = at[c] + offset[c];
          a[c] = value < 0.0f ? 0.0f : value;  // a NaN stays one
          squares[kRadius + c] = a[c] * a[c];
        }
        band_sum(squares.data(), sums.data(), channels);
        for (int64_t c = 0; c < channels; ++c) {
          const float root = 1.0f / std::sqrt(1.0f + alpha * sums[c]);
          result[row * channels + c] = rounded<T>(a[c] * root * std::sqrt(root));
        }
      }
    });
  });
}

// da_c = s_c·dy_c - 1.5·alpha·a_c · band sum of s·dy·a/n, with s = n^-0.75; dx is da where a > 0.
template <class T>
ffi::Error relu_lrn_backward(Array<T> x, Float bias, Array<T> dy, Out<T> dx, FloatOut dbias,
                             float alpha) {
  return guarded([&] {
    const Rows all(x);
    const int64_t channels = all.channels;
    const float* offset = bias.typed_data();
    T* result = out<T>(dx);
    Sums total(channels);
    in_parts(all.count, [&](int64_t first, int64_t last, int part) {
      std::vector<float> a(channels), wide(channels + 2 * kRadius), sums(channels), scaled(channels);
      float* dsum = total.of(part);
      for (int64_t row = first; row < last; ++row) {
        const int64_t start = row * channels;
        const T *at = in<T>(x) + start, *gradient = in<T>(dy) + start;
        for (int64_t c = 0; c < channels; ++c) {
          const float value = at[c] + offset[c];
          a[c] = value < 0.0f ? 0.0f : value;
          wide[kRadius + c] = a[c] * a[c];
        }
        band_sum(wide.data(), sums.data(), channels);
        for (int64_t c = 0; c < channels; ++c) {
          const float root = 1.0f / std::sqrt(1.0f + alpha * sums[c]);
          scaled[c] = gradient[c] * root * std::sqrt(root);
          wide[kRadius + c] = scaled[c] * a[c] * root * root;
        }
        band_sum(wide.data(), sums.data(), channels);
        for (int64_t c = 0; c < channels; ++c) {
          const float da = scaled[c] - 1.5f * alpha * a[c] * sums[c];
          const float value = a[c] > 0.0f ? da : 0.0f;
          result[start + c] = rounded<T>(value);
          dsum[c] += value;
        }
      }
    });
    total.write(dbias->typed_data());
  });
}

// -- normalisation and GELU --

// Mean and biased variance of each channel. Differences are from the first row, which keeps the
// difference of two large numbers away.
template <class T>
ffi::Error moments(Array<T> x, FloatOut mean, FloatOut variance) {
  return guarded([&] {
    const Rows all(x);
    const int64_t channels = all.channels;
    Sums total(2 * channels);
    in_parts(all.count, [&](int64_t first, int64_t last, int part) {
      float *__restrict__ sum = total.of(part), *__restrict__ square = sum + channels;
      const T* origin = in<T>(x);
      for (int64_t row = first; row < last; ++row) {
        const T* at = in<T>(x) + row * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float value = at[c] - origin[c];
          sum[c] += value;
          square[c] += value * value;
        }
      }
    });
    std::vector<float> sums(2 * channels);
    total.write(sums.data());
    for (int64_t c = 0; c < channels; ++c) {
      const float shift = sums[c] / all.count;
      mean->typed_data()[c] = in<T>(x)[c] + shift;
      const float found = sums[channels + c] / all.count - shift * shift;
      variance->typed_data()[c] = found < 0.0f ? 0.0f : found;
    }
  });
}

// exp(x) for x <= 0, to 2e-7 relative: 2^n of the nearest n, times a polynomial of what is left.
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = std::floor(x * 1.44269504f + 0.5f);
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p =
      1.0f + f * (1.0f + f * (0.5f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f / 720)))));
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// The normal distribution's density and probability of at most z, the latter to 1.5e-7 (Abramowitz
// and Stegun, Handbook of Mathematical Functions, 7.1.26).
struct Normal {
  float density, below;
  explicit Normal(float z) {
    const float e = exp_of(-0.5f * z * z);
    const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * std::fabs(z));
    const float tail = 0.5f * e * t *
        (0.254829592f +
         t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    density = 0.39894228f * e;
    below = z > 0.0f ? 1.0f - tail : tail;
  }
};

// y = z · P(z) with z = (x - mean) · factor + bias, of each channel its own.
template <class T>
ffi::Error norm_gelu_forward(Array<T> x, Float mean, Float factor, Float bias, Out<T> y) {
  return guarded([&] {
    const WideRows all(x);
    const int64_t channels = all.channels;
    const auto means = all.spread(mean), factors = all.spread(factor), biases = all.spread(bias);
    const float *m = means.data(), *f = factors.data(), *b = biases.data();
    T* result = out<T>(y);
    in_parts(all.count, [&](int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row) {
        const T* __restrict__ at = in<T>(x) + row * channels;
        T* __restrict__ to = result + row * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float z = (at[c] - m[c]) * f[c] + b[c];
          to[c] = rounded<T>(z * Normal(z).below);
        }
      }
    });
  });
}

// With g = dy · GELU'(z) and x̂ = (x - mean) · factor: the sums of g and of g · x̂.
template <class T>
ffi::Error norm_gelu_sums(Array<T> x, Float mean, Float factor, Float bias, Array<T> dy,
                          FloatOut sum, FloatOut product) {
  return guarded([&] {
    const WideRows all(x);
    const int64_t channels = all.channels;
    const auto means = all.spread(mean), factors = all.spread(factor), biases = all.spread(bias);
    const float *m = means.data(), *f = factors.data(), *b = biases.data();
    Sums total(2 * channels);
    in_parts(all.count, [&](int64_t first, int64_t last, int part) {
      float *__restrict__ sums = total.of(part), *__restrict__ products = sums + channels;
      for (int64_t row = first; row < last; ++row) {
        const T *at = in<T>(x) + row * channels, *gradient = in<T>(dy) + row * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float hat = (at[c] - m[c]) * f[c], z = hat + b[c];
          const Normal normal(z);
          const float g = gradient[c] * (normal.below + z * normal.density);
          sums[c] += g;
          products[c] += g * hat;
        }
      }
    });
    std::vector<float> both(2 * channels);
    total.write(both.data());
    all.gather(both.data(), sum->typed_data());
    all.gather(both.data() + channels, product->typed_data());
  });
}

// dx = factor · (g - mean of g - x̂ · mean of g·x̂), with the means given.
template <class T>
ffi::Error norm_gelu_backward(Array<T> x, Float mean, Float factor, Float bias, Array<T> dy,
                              Float mean_g, Float mean_product, Out<T> dx) {
  return guarded([&] {
    const WideRows all(x);
    const int64_t channels = all.channels;
    const auto means = all.spread(mean), factors = all.spread(factor), biases = all.spread(bias);
    const float *m = means.data(), *f = factors.data(), *b = biases.data();
    const auto means_g = all.spread(mean_g), means_product = all.spread(mean_product);
    const float *mg = means_g.data(), *mp = means_product.data();
    T* result = out<T>(dx);
    in_parts(all.count, [&](int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row) {
        const T *at = in<T>(x) + row * channels, *gradient = in<T>(dy) + row * channels;
        T* __restrict__ to = result + row * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const float hat = (at[c] - m[c]) * f[c], z = hat + b[c];
          const Normal normal(z);
          const float g = gradient[c] * (normal.below + z * normal.density);
          to[c] = rounded<T>(f[c] * (g - mg[c] - hat * mp[c]));
        }
      }
    });
  });
}

}  // namespace

// For both types of T.
#define DEFINE(name, ...)                                                            \
  namespace of_bf16 {                                                                \
  using T = bf16;                                                                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(cifar_jax_##name##_bfloat16, name<T>, __VA_ARGS__);  \
  }                                                                                  \
  namespace of_float {                                                               \
  using T = float;                                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(cifar_jax_##name##_float32, name<T>, __VA_ARGS__);   \
  }
#define BIND ffi::Ffi::Bind()
DEFINE(conv_forward,
    BIND.Arg<Array<T>>().Arg<Float>().Ret<Array<T>>()
        .Attr<int64_t>("top").Attr<int64_t>("left"))
DEFINE(conv_backward_data,
    BIND.Arg<Array<T>>().Arg<Float>().Ret<Array<T>>()
        .Attr<int64_t>("top").Attr<int64_t>("left"))
DEFINE(conv_backward_kernel,
    BIND.Arg<Array<T>>().Arg<Array<T>>().Ret<Float>()
        .Attr<int64_t>("top").Attr<int64_t>("left"))
DEFINE(max_pool,
    BIND.Arg<Array<T>>().Ret<Array<T>>().Attr<int64_t>("window").Attr<int64_t>("stride"))
DEFINE(max_pool_forward,
    BIND.Arg<Array<T>>().Ret<Array<T>>().Ret<Byte>().Attr<int64_t>("window")
        .Attr<int64_t>("stride"))
DEFINE(max_pool_backward,
    BIND.Arg<Array<T>>().Arg<Byte>().Ret<Array<T>>().Attr<int64_t>("window")
        .Attr<int64_t>("stride"))
DEFINE(relu_lrn_forward, BIND.Arg<Array<T>>().Arg<Float>().Ret<Array<T>>().Attr<float>("alpha"))
DEFINE(relu_lrn_backward,
    BIND.Arg<Array<T>>().Arg<Float>().Arg<Array<T>>().Ret<Array<T>>().Ret<Float>()
        .Attr<float>("alpha"))
DEFINE(moments, BIND.Arg<Array<T>>().Ret<Float>().Ret<Float>())
DEFINE(norm_gelu_forward,
    BIND.Arg<Array<T>>().Arg<Float>().Arg<Float>().Arg<Float>().Ret<Array<T>>())
DEFINE(norm_gelu_sums,
    BIND.Arg<Array<T>>().Arg<Float>().Arg<Float>().Arg<Float>().Arg<Array<T>>().Ret<Float>()
        .Ret<Float>())
DEFINE(norm_gelu_backward,
    BIND.Arg<Array<T>>().Arg<Float>().Arg<Float>().Arg<Float>().Arg<Array<T>>().Arg<Float>()
        .Arg<Float>().Ret<Array<T>>())
