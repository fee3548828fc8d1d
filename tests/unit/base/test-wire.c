/* test-wire.c - W1-W3: readers and writers never leave their buffer, and remember that they would have. */
#include "base/wire.h"

#include <glib.h>
#include <string.h>

static void test_layout(void)
{
	uint8_t out[15];
	struct wire_writer w = wire_writer(out, sizeof out);
	wire_put_u8(&w, 0x01);
	wire_put_u16(&w, 0x0302);
	wire_put_u32(&w, 0x07060504);
	wire_put_u64(&w, UINT64_C(0x0f0e0d0c0b0a0908));
	g_assert_true(wire_ok(&w));
	g_assert_cmpuint(w.used, ==, sizeof out);
	for (unsigned i = 0; i < sizeof out; i++)
		g_assert_cmpuint(out[i], ==, i + 1);
	struct wire_reader r = wire_reader(out, sizeof out);
	g_assert_cmphex(wire_u8(&r), ==, 0x01);
	g_assert_cmphex(wire_u16(&r), ==, 0x0302);
	g_assert_cmphex(wire_u32(&r), ==, 0x07060504);
	g_assert_false(wire_done(&r));
	g_assert_cmphex(wire_u64(&r), ==, UINT64_C(0x0f0e0d0c0b0a0908));
	g_assert_true(wire_done(&r));
}

/* W1: after one failed read all are; nothing that is there is given any more. */
static void test_w1_reader_stops(void)
{
	const uint8_t in[] = { 1, 2, 3, 4, 5 };
	struct wire_reader r = wire_reader(in, sizeof in);
	g_assert_cmphex(wire_u32(&r), ==, 0x04030201);
	g_assert_cmpuint(wire_u16(&r), ==, 0);
	g_assert_cmpuint(wire_u8(&r), ==, 0);
	g_assert_null(wire_bytes(&r, 1));
	g_assert_false(wire_done(&r));
	r = wire_reader(in, sizeof in);
	g_assert_null(wire_bytes(&r, SIZE_MAX));
	r = wire_reader(in, 0);
	g_assert_true(wire_done(&r));
}

/* W2 */
static void test_w2_exact_end(void)
{
	const uint8_t in[3] = { 0 };
	struct wire_reader r = wire_reader(in, sizeof in);
	wire_u16(&r);
	g_assert_false(wire_done(&r));
}

/* W3 */
static void test_w3_writer_stops(void)
{
	uint8_t out[8];
	memset(out, 0xaa, sizeof out);
	struct wire_writer w = wire_writer(out, 5);
	wire_put_u32(&w, 0);
	wire_put_u16(&w, 0);
	g_assert_false(wire_ok(&w));
	wire_put_u8(&w, 0);
	g_assert_false(wire_ok(&w));
	g_assert_cmpuint(w.used, ==, 4);
	for (unsigned i = 4; i < sizeof out; i++)
		g_assert_cmphex(out[i], ==, 0xaa);
	w = wire_writer(out, 5);
	wire_put_bytes(&w, out, SIZE_MAX);
	g_assert_false(wire_ok(&w));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/base/wire/layout", test_layout);
	g_test_add_func("/base/wire/W1-reader-stops", test_w1_reader_stops);
	g_test_add_func("/base/wire/W2-exact-end", test_w2_exact_end);
	g_test_add_func("/base/wire/W3-writer-stops", test_w3_writer_stops);
	return g_test_run();
}
