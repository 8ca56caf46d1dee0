// The reference of the gated activations against values made with mpmath at 60 digits from the
// formulas as rmsnorm.h writes them; then the rules for zeros, Infs and NaNs.
#include "reference/glu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace rmsnorm {
namespace {

using reference::Exact;

constexpr rmsnorm_activation_t kSilu = RMSNORM_ACTIVATION_SILU;
constexpr rmsnorm_activation_t kTanh = RMSNORM_ACTIVATION_GELU_TANH;
constexpr rmsnorm_activation_t kErf = RMSNORM_ACTIVATION_GELU_ERF;
constexpr rmsnorm_activation_t kActivations[] = {kSilu, kTanh, kErf};
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Within 2^-95 of `size`, or, where fp64 ends, of the nearest double.
void expect_close(const Exact &got, const Exact &wanted, double size, const char *what) {
  if (std::fabs(wanted.high) < 0x1p-960) {  // where `low` has no bits left
    EXPECT_LE(std::fabs(got.high - wanted.high), std::fabs(wanted.high) * 0x1p-52) << what;
    return;
  }
  const double error = std::fabs((got.high - wanted.high) + (got.low - wanted.low));
  EXPECT_LE(error, size * 0x1p-95) << what << " " << wanted.high;
}

struct Known {
  rmsnorm_activation_t kind;
  double gate;
  Exact value, derivative;
};
const Known kKnown[] = {
    {kSilu, 0.0, {0, 0}, {0x1p-1, 0}},
    {kSilu,
     1.0,
     {0x1.764d4f5d5a2bdp-1, -0x1.35dae23bc734ap-56},
     {0x1.daf7a11be73a2p-1, -0x1.19dde90c13d11p-56}},
    {kSilu,
     -0.3,
     {-0x1.0576678ede68dp-3, 0x1.077531d9c8808p-57},
     {0x1.68ac5b62b61ffp-2, -0x1.f88713054aad7p-56}},
    {kSilu,
     3.0,
     {0x1.6dc9d8d293c0dp1, -0x1.dd84da02bd5aap-54},
     {0x1.168dfd9dfa7d1p0, -0x1.bfdc1b5111254p-54}},
    {kSilu,
     -3.0,
     {-0x1.236272d6c3f34p-3, 0x1.13d92fea152b3p-57},
     {-0x1.68dfd9dfa7d09p-4, -0x1.1f257776d6225p-65}},
    {kSilu,
     -0.75,
     {-0x1.ecc811916943cp-3, -0x1.606af0d7f84a6p-60},
     {0x1.425af5d633423p-3, -0x1.cb7b8c5e02059p-58}},
    {kSilu,
     -1.278464542761074,
     {-0x1.1d25cf210482ep-2, 0x1.ca2d0d94faaf3p-60},
     {-0x1.c450cd12a2a57p-56, 0x1.34cc8811bb1bp-112}},
    {kSilu,
     -20.0,
     {-0x1.621a7eaac634ap-25, 0x1.ce15e15f29f6p-80},
     {-0x1.5065f84930c36p-25, 0x1.58b9a1f3f9828p-79}},
    {kSilu,
     30.0,
     {0x1.dfffffffffceap4, -0x1.72b681b4f320dp-51},
     {0x1.0000000002fbdp0, 0x1.dd836274160a7p-54}},
    {kSilu,
     6.0,
     {0x1.7f0cee669c42p2, -0x1.677cb817b7603p-55},
     {0x1.0327d338db612p0, -0x1.5059ccba27a37p-55}},
    {kSilu, 1e-200, {0x1.87e92154ef7acp-666, 0}, {0x1p-1, 0}},
    {kSilu,
     -180.5,
     {-0x1.105d9139236a2p-253, -0x1.724adab8eedf8p-309},
     {-0x1.0edb46aafe57dp-253, -0x1.ad1b936d76604p-311}},
    {kTanh, 0.0, {0, 0}, {0x1p-1, 0}},
    {kTanh,
     1.0,
     {0x1.aeb0b772a3ae1p-1, 0x1.e87de6f666799p-55},
     {0x1.153d225adc389p0, -0x1.912b13cf3cafap-56}},
    {kTanh,
     -0.3,
     {-0x1.d5854c68df5d9p-4, 0x1.eb826d3fc4564p-58},
     {0x1.12212420cea3cp-2, 0x1.360da6ccb637ap-56}},
    {kTanh,
     3.0,
     {0x1.7f88cf57fba7bp1, 0x1.477fc2ebdb19p-53},
     {0x1.02f72e10d4d89p0, -0x1.cc26016470556p-60}},
    {kTanh,
     -3.0,
     {-0x1.dcc2a011612b9p-9, 0x1.ff0baf6c63e2bp-63},
     {-0x1.7b97086a6c47fp-7, -0x1.9ecff4dc7d54cp-63}},
    {kTanh,
     -0.75,
     {-0x1.5c3da3f4bfcf3p-3, -0x1.1693caf7d9781p-57},
     {0x1.16546caa87f85p-10, 0x1.35e38c5b4787p-64}},
    {kTanh,
     -1.278464542761074,
     {-0x1.07b7ae93a2ba8p-3, -0x1.caba9c74d0063p-57},
     {-0x1.fe4a6dfd16cbp-4, 0x1.340f56b6bbd08p-58}},
    {kTanh,
     -20.0,
     {-0x1.a927dc6157cbp-866, -0x1.2b334dc2af5b8p-921},
     {-0x1.218af673aa1f2p-859, -0x1.3aa38b74d7714p-913}},
    {kTanh, 30.0, {0x1.ep4, 0}, {0x1p0, 0}},
    {kTanh,
     6.0,
     {0x1.7fffffffe8cd2p2, 0x1.a4629663ceb1ep-56},
     {0x1.000000034fb88p0, -0x1.b604a37b71eb1p-54}},
    {kTanh, 1e-200, {0x1.87e92154ef7acp-666, 0}, {0x1p-1, 0}},
    {kTanh, -24.0, {-0.0, 0}, {-0.0, 0}},
    {kErf, 0.0, {0, 0}, {0x1p-1, 0}},
    {kErf,
     1.0,
     {0x1.aec4bd120d37dp-1, 0x1.a4bf22e9ef2ddp-56},
     {0x1.155429a56cca6p0, -0x1.de6e70cc5c7bdp-54}},
    {kErf,
     -0.3,
     {-0x1.d582ac7c317abp-4, 0x1.ebcec114deb94p-65},
     {0x1.1218ab7e19722p-2, 0x1.35fb58eea0d12p-56}},
    {kErf,
     3.0,
     {0x1.7f7b4cb426ddcp1, -0x1.844d00b1b86e6p-54},
     {0x1.030edeb4124f6p0, 0x1.20bc24cc57533p-55}},
    {kErf,
     -3.0,
     {-0x1.096697b244861p-8, -0x1.3402c6e1b96ebp-64},
     {-0x1.876f5a0927b12p-7, -0x1.784998aea6658p-64}},
    {kErf,
     -0.75,
     {-0x1.5c19804106bbap-3, -0x1.1f856e2d04e25p-57},
     {0x1.95f1de76c2ee1p-11, -0x1.7634e475407acp-65}},
    {kErf,
     -1.278464542761074,
     {-0x1.074037e1ac4fbp-3, -0x1.91063871dd88ep-58},
     {-0x1.fed3fba3d9824p-4, -0x1.ba85e3d4a7719p-60}},
    {kErf,
     -20.0,
     {-0x1.1876296f504b2p-290, 0x1.9a5685faf9959p-345},
     {-0x1.5e9298203bb09p-286, 0x1.1d086c6df99eap-341}},
    {kErf, 30.0, {0x1.ep4, 0}, {0x1p0, 0}},
    {kErf,
     6.0,
     {0x1.7ffffff9a4da6p2, 0x1.7f23c13a2d1p-52},
     {0x1.0000009856423p0, -0x1.47c6da1a93736p-54}},
    {kErf, 1e-200, {0x1.87e92154ef7acp-666, 0}, {0x1p-1, 0}},
    {kErf,
     -36.5,
     {-0x1.93ec522705a3ap-963, -0x1.3485afe41562fp-1018},
     {-0x1.ccb96bcefb07cp-958, 0x1.a4e114999122ap-1012}},
};

TEST(GluReference, ActivationAndDerivative) {
  for (const Known &known : kKnown) {
    SCOPED_TRACE(testing::Message() << known.kind << " " << known.gate);
    const reference::Activation got = reference::activation(known.kind, known.gate);
    expect_close(got.value, known.value, std::fabs(known.value.high), "act");
    expect_close(got.derivative, known.derivative, got.size, "act'");
    EXPECT_GE(got.size, std::fabs(known.derivative.high) * (1 - 0x1p-50));
  }
}

// Where act(gate) or dy * up alone leave fp64's range, but not the product.
struct KnownProduct {
  rmsnorm_activation_t kind;
  double dy, gate, up;
  Exact y, dgate, dup;
};
const KnownProduct kKnownProducts[] = {
    {kSilu,
     1.0,
     -184.0,
     3e+38,
     {-0x1.d9117914d9174p-131, 0x1.9b73d19b8e787p-186},
     {-0x1.d67f4a82a5d2fp-131, 0x1.10a8d756c167cp-191},
     {-0x1.0c4b6da63f836p-258, -0x1.5bfce8e45774ep-312}},
    {kSilu,
     2.0,
     -1400.0,
     1e+307,
     {-0x1.6c93a9fec96ebp-990, -0x0.000005fe0ff8dp-1022},
     {-0x1.6c50ffa243125p-989, 0x0.00000c0beb0cfp-1022},
     {-0.0, 0}},
    {kSilu,
     1e+300,
     -1900.0,
     1e+308,
     {-0.0, 0},
     {-0x1.6ab954b82e358p-711, -0x1.341d93f04cd14p-773},
     {-0.0, 0}},
    {kTanh,
     1.0,
     -12.0,
     1e+38,
     {-0x1.3c72135e4de2p-76, -0x1.7e16bb4d0f59ap-131},
     {-0x1.3fc906d4384p-71, 0x1.47c1fbaca02c3p-129},
     {-0x1.0d33c02f64234p-202, 0x1.38a914eb3831ap-257}},
    {kTanh,
     1.0,
     -21.0,
     1e+308,
     {-0x1.cb08aa702b15cp25, 0x1.59f345a5094afp-30},
     {-0x1.58191eff45396p32, 0x1.2c4da245b8895p-23},
     {-0x1.9c99db33e694cp-998, -0x0.00000005f0472p-1022}},
    {kTanh,
     1e+300,
     -24.5,
     1e+308,
     {-0x1.622c73eb27b73p-543, -0x1.bb5c7ca2b4e21p-597},
     {-0x1.0ca8b42b1f18dp461, 0x1.35f28aa52fab4p407},
     {-0x1.db5d232ab1ce9p-570, -0x1.86565c5ab14b1p-625}},
    {kErf,
     1.0,
     -19.0,
     3e+38,
     {-0x1.0efba04534cc6p-134, -0x1.f9a693789c3efp-189},
     {-0x1.41c98f1149a2fp-130, 0x1.1603697d67719p-184},
     {-0x1.335e786a468ep-262, -0x1.c609756ce25fcp-318}},
    {kErf,
     3.0,
     -38.0,
     1e+300,
     {-0x1.8b0ad755c1e21p-47, -0x1.e56307b86420ap-101},
     {-0x1.5fd591be16b4p-40, 0x1.7f178b6ed015p-99},
     {-0x0.000018cd5e805p-1022, 0}},
    {kErf,
     1e+308,
     -52.0,
     1e+308,
     {-0x1.3c056344471d4p-929, -0x1.1feec8dd12472p-984},
     {-0x1.1da9ad71614f6p100, 0x1.56e6579483765p46},
     {-0x1.3c056344471d4p-929, -0x1.1feec8dd12472p-984}},
    {kErf, 1.0, 5e-324, 1e+308, {0x1.1ccf385ebc8ap-52, 0}, {0x1.1ccf385ebc8ap1022, 0}, {0, 0}},
    {kSilu,
     1e-300,
     1e+308,
     0.001,
     {0x1.23a516e82d9bap1013, 0x1.e632e68ac76p959},
     {0x1.5f1ca820511c4p-1007, -0x0.00000000024cap-1022},
     {0x1.7d784p26, 0x1.ef4dfcb44fdp-29}},
};

TEST(GluReference, Products) {
  for (const KnownProduct &known : kKnownProducts) {
    SCOPED_TRACE(testing::Message() << known.kind << " " << known.gate);
    expect_close(reference::glu_y(known.kind, known.gate, known.up), known.y,
                 std::fabs(known.y.high), "y");
    const reference::GluGradients got =
        reference::glu_gradients(known.kind, known.dy, known.gate, known.up);
    expect_close(got.dgate, known.dgate, got.magnitude, "dgate");
    expect_close(got.dup, known.dup, std::fabs(known.dup.high), "dup");
  }
}

TEST(GluReference, Specials) {
  for (const rmsnorm_activation_t kind : kActivations) {
    SCOPED_TRACE(kind);
    for (const double gate : {kNan, -kInf}) {
      EXPECT_TRUE(std::isnan(reference::glu_y(kind, gate, 1).high));
      EXPECT_TRUE(std::isnan(reference::glu_gradients(kind, 1, gate, 1).dgate.high));
      EXPECT_TRUE(std::isnan(reference::glu_gradients(kind, 1, gate, 1).dup.high));
    }
    EXPECT_EQ(reference::glu_y(kind, kInf, -2).high, -kInf);
    EXPECT_EQ(reference::glu_gradients(kind, 2, kInf, 1).dup.high, kInf);
    EXPECT_TRUE(std::isnan(reference::glu_gradients(kind, 1, kInf, 1).dgate.high));
    EXPECT_TRUE(std::isnan(reference::glu_y(kind, 1, kNan).high));
    EXPECT_TRUE(std::isnan(reference::glu_gradients(kind, kNan, 1, 1).dgate.high));
    EXPECT_TRUE(std::isnan(reference::glu_gradients(kind, kNan, 1, 1).dup.high));
    EXPECT_EQ(reference::glu_y(kind, 0, 5).high, 0);
    EXPECT_EQ(reference::glu_gradients(kind, 3, 0, 5).dgate.high, 7.5);
    EXPECT_EQ(reference::glu_gradients(kind, 3, 0, 5).magnitude, 7.5);
    EXPECT_EQ(reference::glu_y(kind, -1e38, 1e38).high, 0);
    EXPECT_EQ(reference::glu_gradients(kind, 1, -1e300, 1e300).dgate.high, 0);
    EXPECT_EQ(reference::glu_y(kind, 1e300, 1).high, 1e300);
  }
}

}  // namespace
}  // namespace rmsnorm
