/* fuzz-switch.c - frames from a guest, from another host and from outside, records of a backup: whatever comes, in whatever order with cuts, markers,
 * releases and recoveries, no rule of src/net is broken (its MUSTs), and nothing reaches a VM that P1 holds back.
 *
 * The parts of the switch are driven without its thread: the same functions, called in the order of the input. Records:
 *   0 bytes from the VM   1 bytes from the tunnel   2 a FRAME   3 a MARKER (headers and checksums made here)   4 a frame from outside   5 cut and marker
 *   6 take the record   7 discard   8 release   9 freeze   10 recovery, with a record to deliver again   11 a second VM reads what it got */
#include "net/net-private.h"
#include "fuzz.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[] = "/tmp/vcft-fuzz-net-XXXXXX", *path[2];

struct bench { struct net net; int vm[2]; int outside; uint64_t r, generation; struct input in; };

static void clean(void) { rmdir(dir); }

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	demand(mkdtemp(dir) != NULL);
	for (int i = 0; i < 2; i++)
		path[i] = g_strdup_printf("%s/%d", dir, i);
	atexit(clean);
	return 0;
}

static struct port *port_of(struct bench *b, unsigned vm) { return b->net.vms[vm].ports[0]; }

static void round_off(struct bench *b)
{
	switch_flush(&b->net);
	g_ptr_array_set_size(b->net.graves, 0);
}

static void ready(struct bench *b, struct source *s)
{
	if (s->fd >= 0)
		s->ready(&b->net, s, EPOLLIN);
	round_off(b);
}

static void connect_vm(struct bench *b, unsigned vm)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (port_of(b, vm)->connection.fd >= 0)
		return;
	if (b->vm[vm] >= 0)
		close(b->vm[vm]);
	strcpy(a.sun_path, path[vm]);
	b->vm[vm] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	demand(connect(b->vm[vm], (struct sockaddr *)&a, sizeof a) == 0);
	ready(b, &port_of(b, vm)->listener);
}

static void add_vm(struct bench *b, unsigned vm)
{
	const struct net_nic_spec nic = { 0, { 0x52, 0x54, 0, 0, 0, (uint8_t)vm } };
	const char *const paths[] = { path[vm] };
	struct request q = { .vm = { vm }, .nics = &nic, .nic_count = 1, .paths = paths, .ok = TRUE };
	port_add_vm(&b->net, &q);
	demand(q.ok);
	b->vm[vm] = -1;
	connect_vm(b, vm);
}

static void add_uplink(struct bench *b)
{
	int pair[2];
	demand(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	b->outside = pair[1];
	b->net.networks[0].uplink = uplink_new(&b->net, 0, pair[0], true);
}

static void add_tunnel(struct bench *b)
{
	struct tunnel *t = b->net.tunnels[1] = g_new0(struct tunnel, 1);
	t->host.n = 1;
	t->connection.fd = -1;
	t->timer = INT64_MAX;
	t->rx = g_malloc(TUNNEL_RX_BYTES);
	t->state = TUNNEL_UP;
	t->tls = tls_new(NULL, TLS_CONNECTS, -1, NULL);
	demand(tls_handshake(t->tls) == TLS_OPEN);
}

static void recover(struct bench *b, uint64_t c, GBytes *record)
{
	struct request q = { .generation = { ++b->generation }, .epoch = { c }, .ok = TRUE };
	switch_rollback(&b->net, &q);
	round_off(b);
	GError *error = NULL;
	struct request again = { .vm = { 1 }, .record = record, .error = &error, .ok = TRUE };
	record_reinject(&b->net, &again);
	demand(again.ok == (error == NULL));
	g_clear_error(&error);
	switch_run(&b->net, &q);
	round_off(b);
	connect_vm(b, 0);
	connect_vm(b, 1);
	b->r = c;
}

static void open_bench(struct bench *b)
{
	struct net *net = &b->net;
	net->self.n = 2;
	net->limits = (struct net_limits){ 1 << 16, 1 << 16 };
	net->epoch = epoch_of(1);
	net->scratch = g_malloc(VCFT_FRAME_MAX);
	net->tunnel_listener.fd = -1;
	mac_init(&net->macs);
	demand(loop_init(net, NULL) && charges_init(&net->charges, NULL));
	net->networks[0].known = true;
	add_uplink(b);
	add_tunnel(b);
	const struct net_nic_spec elsewhere = { 0, { 0x52, 0x54, 0, 0, 0, 9 } };
	switch_place_vm(net, &(struct request){ .vm = { 9 }, .host = { 1 }, .nics = &elsewhere, .nic_count = 1 });
	add_vm(b, 0);
	add_vm(b, 1);
	recover(b, 0, NULL);
}

static void close_bench(struct bench *b)
{
	struct net *net = &b->net;
	switch_clear(net, &(struct request){ 0 });
	ring_free(&net->pool, &net->ahead);
	frame_pool_clear(&net->pool);
	charges_clear(&net->charges);
	mac_clear(&net->macs);
	loop_clear(net);
	g_free(net->scratch);
	close(b->vm[0]);
	close(b->vm[1]);
	close(b->outside);
}

static void from_vm(struct bench *b, const uint8_t *bytes, size_t n)
{
	connect_vm(b, 0);
	if (n && send(b->vm[0], bytes, n, MSG_NOSIGNAL) >= 0)
		ready(b, &port_of(b, 0)->connection);
}

static void from_tunnel(struct bench *b, const uint8_t *bytes, size_t n)
{
	struct tunnel *t = b->net.tunnels[1];
	if (t->rx_used + n > TUNNEL_RX_BYTES)
		return;
	memcpy(t->rx + t->rx_used, bytes, n);
	t->rx_used += n;
	if (tunnel_take(&b->net, t))
		t->rx_used = 0;
	demand(t->rx_used < MESSAGE_HEADER_BYTES + 65559);
	round_off(b);
}

static uint64_t near(struct bench *b)
{
	uint64_t k = take(&b->in, 1);
	return k < 250 ? b->r + k % 4 : VCFT_NUMBER_MAX - (k - 250);
}

static void tunnel_frame(struct bench *b, const uint8_t *bytes, size_t n)
{
	static uint8_t out[TUNNEL_HEAD_BYTES + 4096];
	if (n < FRAME_LEAST || n > 4096)
		return;
	struct frame *f = g_malloc(sizeof *f + n);
	*f = (struct frame){ .size = (uint32_t)n, .generation.n = b->generation + take(&b->in, 1) % 3 - 1, .colour.n = near(b) };
	memcpy(f->data, bytes, n);
	tunnel_put_frame_head(out, f);
	memcpy(out + TUNNEL_HEAD_BYTES, bytes, n);
	g_free(f);
	from_tunnel(b, out, TUNNEL_HEAD_BYTES + n);
}

static void tunnel_marker(struct bench *b)
{
	uint8_t out[TUNNEL_MARKER_BYTES];
	tunnel_put_marker(out, (struct generation){ b->generation + take(&b->in, 1) % 3 - 1 }, epoch_of(near(b)));
	from_tunnel(b, out, sizeof out);
}

static void from_outside(struct bench *b, const uint8_t *bytes, size_t n)
{
	struct frame *f = frame_new(&b->net.pool, bytes, n);
	switch_from_uplink(&b->net, f);
	round_off(b);
}

static void cut(struct bench *b)
{
	if (b->net.state != NET_RUNNING)
		return;
	b->r++;
	for (unsigned v = 0; v < 2; v++)
		record_cut(&b->net, &(struct request){ .vm = { v }, .epoch = { b->r } });
	record_marker(&b->net, &(struct request){ .epoch = { b->r }, .others = 1 << 1 });
	round_off(b);
}

static void take_record(struct bench *b)
{
	struct request q = { .vm = { 1 }, .epoch = { b->r } };
	record_take(&b->net, &q);
	if (q.record) {
		struct request again = { .vm = { 1 }, .record = q.record, .ok = TRUE };
		demand(b->net.state != NET_PLACING);
		(void)again;
		g_bytes_unref(q.record);
	}
}

static void drain(struct bench *b)
{
	uint8_t waste[4096];
	while (recv(b->vm[1], waste, sizeof waste, 0) > 0 || recv(b->outside, waste, sizeof waste, 0) > 0)
		;
}

static void record(struct bench *b)
{
	uint64_t type = take(&b->in, 1) % 12;
	size_t n = type <= 4 || type == 10 ? take(&b->in, 2) % 4097 : 0;
	const uint8_t *bytes = take_bytes(&b->in, &n);
	switch (type) {
	case 0: from_vm(b, bytes, n); break;
	case 1: from_tunnel(b, bytes, n); break;
	case 2: tunnel_frame(b, bytes, n); break;
	case 3: tunnel_marker(b); break;
	case 4: from_outside(b, bytes, n); break;
	case 5: cut(b); break;
	case 6: take_record(b); break;
	case 7: record_discard(&b->net, &(struct request){ .epoch = { b->r } }); break;
	case 8: uplink_release_request(&b->net, &(struct request){ .epoch = { b->r } }); break;
	case 9: switch_freeze(&b->net, &(struct request){ 0 }); break;
	case 10: {
		g_autoptr(GBytes) again = g_bytes_new(bytes, n);
		struct gate_view view;
		gate_view(b->net.networks[0].uplink->gate, &view);
		recover(b, MAX(b->r, view.released.n), again);
		break;
	}
	default: drain(b); break;
	}
	round_off(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct bench *b = g_new0(struct bench, 1);
	b->in = (struct input){ data, n };
	open_bench(b);
	while (b->in.left)
		record(b);
	close_bench(b);
	g_free(b);
	return 0;
}
