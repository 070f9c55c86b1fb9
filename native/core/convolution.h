// The sizes of a convolution, for every device: read off its call, and checked.
#pragma once
#include "windows.h"

namespace densecl {

// Of x [N, H, W, C] with a weight [O, KH, KW, _] to y [N, OH, OW, O]. Small is the integer of kernel and steps. `yName` is what the op
// calls its tensor of y's shape.
template <class Small>
struct Convolution {
  int64_t n, h, w, c, oh, ow, o;
  Small kh, kw, sh, sw, ph, pw, dh, dw;

  template <class Names>
  Convolution(const Call& call, Names, const Tensor& x, const Tensor& weight, const Tensor& y, const char* yName)
      : n(x.dim(0)),
        h(x.dim(1)),
        w(x.dim(2)),
        c(x.dim(3)),
        oh(y.dim(1)),
        ow(y.dim(2)),
        o(weight.dim(0)),
        kh(static_cast<Small>(weight.dim(1))),
        kw(static_cast<Small>(weight.dim(2))),
        sh(static_cast<Small>(call.integer(Names::strideH))),
        sw(static_cast<Small>(call.integer(Names::strideW))),
        ph(static_cast<Small>(call.integer(Names::paddingH))),
        pw(static_cast<Small>(call.integer(Names::paddingW))),
        dh(static_cast<Small>(call.integer(Names::dilationH))),
        dw(static_cast<Small>(call.integer(Names::dilationW))) {
    requireWindows(call, yName, y, windowsAlong(h, kh, sh, ph, dh), windowsAlong(w, kw, sw, pw, dw));
  }
  int64_t pixels() const { return n * oh * ow; }
  int64_t taps() const { return int64_t{1} * kh * kw; }
};

// In groups: a weight [O, KH, KW, C / groups], of which each group has `outs` rows, and reads `in` channels of x.
template <class Small>
struct GroupedConvolution : Convolution<Small> {
  int64_t groups, in, outs;

  template <class Names>
  GroupedConvolution(const Call& call, Names names, const Tensor& x, const Tensor& weight, const Tensor& y, const char* yName)
      : Convolution<Small>(call, names, x, weight, y, yName),
        groups(call.integer(Names::groups)),
        in(weight.dim(3)),
        outs(this->o / groups) {
    REQUIRE(in * groups == this->c && outs * groups == this->o, "SHAPE",
            std::string(call.op) + ": expected weight [O,KH,KW,C/groups] with O and C of x " + describe(x) + " divisible by " +
                std::to_string(groups) + " groups but received " + describe(weight));
  }
  bool depthwise() const { return in == 1 && outs == 1; }
};

}  // namespace densecl
