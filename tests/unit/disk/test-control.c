/* test-control.c - the codec of the control socket: there and back, and every wrong byte that matters is refused (D15). */
#include "disk/control.h"

#include <glib.h>

#include <string.h>

static void request_there_and_back(void)
{
	uint8_t wire[CONTROL_REQUEST_BYTES];
	for (enum control_verb v = CONTROL_PING; v <= CONTROL_ROLLBACK; v++) {
		struct control_request in = { v, 0x0102030405060708, epoch_of(UINT64_MAX - 1) }, out = { 0 };
		control_request_encode(wire, &in);
		g_assert_true(control_request_decode(wire, sizeof wire, &out));
		g_assert_true(out.verb == v && out.sequence == in.sequence && out.epoch.n == in.epoch.n);
		g_assert_nonnull(control_verb_name(v));
	}
}

static void request_refused(void)
{
	uint8_t wire[CONTROL_REQUEST_BYTES + 1] = { 0 };
	const struct control_request in = { CONTROL_SEAL, 1, epoch_of(2) };
	struct control_request out;
	control_request_encode(wire, &in);
	g_assert_false(control_request_decode(wire, CONTROL_REQUEST_BYTES + 1, &out));
	for (size_t n = 0; n < CONTROL_REQUEST_BYTES; n++)
		g_assert_false(control_request_decode(wire, n, &out));
	for (size_t i = 0; i < 8; i++) {   /* magic, verb, zero */
		wire[i] ^= 0x40;
		g_assert_false(control_request_decode(wire, CONTROL_REQUEST_BYTES, &out));
		wire[i] ^= 0x40;
	}
	wire[4] = 0;
	g_assert_false(control_request_decode(wire, CONTROL_REQUEST_BYTES, &out));
	wire[4] = CONTROL_ROLLBACK + 1;
	g_assert_false(control_request_decode(wire, CONTROL_REQUEST_BYTES, &out));
}

static void answer_there_and_back(void)
{
	uint8_t wire[CONTROL_ANSWER_BYTES];
	struct control_answer in = { .failed = true, .sequence = 5, .open = { 6 }, .blocks = 7, .count = 8 }, out;
	for (size_t n = 0; n <= CONTROL_TEXT_MAX; n += 43) {
		memset(in.text, 0, sizeof in.text);
		memset(in.text, 'x', n);
		in.damaged = n > 100;
		control_answer_encode(wire, &in);
		g_assert_true(control_answer_decode(wire, sizeof wire, &out));
		g_assert_cmpstr(out.text, ==, in.text);
		g_assert_true(out.failed && out.damaged == in.damaged && out.sequence == 5 && out.open.n == 6 && out.blocks == 7 && out.count == 8);
	}
}

static void answer_refused(void)
{
	uint8_t wire[CONTROL_ANSWER_BYTES + 1] = { 0 };
	struct control_answer in = { .sequence = 5, .text = "no space" }, out;
	control_answer_encode(wire, &in);
	g_assert_false(control_answer_decode(wire, CONTROL_ANSWER_BYTES + 1, &out));
	for (size_t n = 0; n < CONTROL_ANSWER_BYTES; n++)
		g_assert_false(control_answer_decode(wire, n, &out));
	const struct { size_t at; uint8_t value; } wrong[] = { { 0, 0 }, { 4, 3 }, { 6, 7 }, { 6, 9 }, { 6, 255 }, { 41, 0 }, { 255, 1 } };
	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		uint8_t was = wire[wrong[i].at];
		wire[wrong[i].at] = wrong[i].value;
		g_assert_false(control_answer_decode(wire, CONTROL_ANSWER_BYTES, &out));
		wire[wrong[i].at] = was;
	}
	g_assert_true(control_answer_decode(wire, CONTROL_ANSWER_BYTES, &out));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/disk/control/request", request_there_and_back);
	g_test_add_func("/disk/control/D15-request-refused", request_refused);
	g_test_add_func("/disk/control/answer", answer_there_and_back);
	g_test_add_func("/disk/control/D15-answer-refused", answer_refused);
	return g_test_run();
}
