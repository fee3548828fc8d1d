/* test-tls.c - TLS1 to TLS5 and PK1 to PK3 with real certificates over real sockets. The peers that are not ours use GnuTLS directly. */
#include "../pki-test.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIMIT_S 20

static struct pki_term good_term(void) { return pki_term_now(PKI_HOST_DAYS); }
static struct pki_term over_term(void) { return (struct pki_term){ g_get_real_time() / G_USEC_PER_SEC - 10 * 86400, 5 }; }
static struct pki_term coming_term(void) { return (struct pki_term){ g_get_real_time() / G_USEC_PER_SEC + 86400, 5 }; }

static void pair_new(int fd[static 2])
{
	struct timeval limit = { .tv_sec = LIMIT_S };
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), ==, 0);
	for (int i = 0; i < 2; i++) {
		setsockopt(fd[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
		setsockopt(fd[i], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	}
}

/* ---- a peer that is not ours ---- */

struct raw {
	int fd;
	bool server;
	const char *folder;          /* NULL: no certificate */
	const char *priority;        /* NULL: TLS 1.3 */
	ssize_t got;                 /* bytes of application data that it was given */
	char bytes[64];
};

static gpointer raw_main(gpointer data)
{
	struct raw *r = data;
	gnutls_certificate_credentials_t x;
	gnutls_session_t s;
	g_assert_cmpint(gnutls_certificate_allocate_credentials(&x), ==, 0);
	if (r->folder) {
		g_autofree char *crt = g_build_filename(r->folder, "cert.pem", NULL), *key = g_build_filename(r->folder, "key.pem", NULL);
		g_assert_cmpint(gnutls_certificate_set_x509_key_file(x, crt, key, GNUTLS_X509_FMT_PEM), >=, 0);
	}
	g_assert_cmpint(gnutls_init(&s, (r->server ? GNUTLS_SERVER : GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT) | GNUTLS_NO_SIGNAL), ==, 0);
	g_assert_cmpint(gnutls_priority_set_direct(s, r->priority ? r->priority : "NORMAL:-VERS-ALL:+VERS-TLS1.3", NULL), ==, 0);
	gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, x);
	gnutls_transport_set_int(s, r->fd);
	int e;
	while ((e = gnutls_handshake(s)) < 0 && !gnutls_error_is_fatal(e))
		;
	r->got = e < 0 ? 0 : gnutls_record_recv(s, r->bytes, sizeof r->bytes);
	shutdown(r->fd, SHUT_RDWR);
	gnutls_deinit(s);
	gnutls_certificate_free_credentials(x);
	return NULL;
}

/* Ours accepts a peer that is not: how the handshake ends, and that the peer is told nothing of ours unless it ends well. */
static enum tls_progress accept_raw(struct raw *r, bool *ret_host1)
{
	int fd[2];
	pair_new(fd);
	struct tls_credentials *c = pki_test_credentials("host2");
	struct tls *t = tls_new(c, TLS_ACCEPTS, fd[0], NULL);
	r->fd = fd[1];
	GThread *thread = g_thread_new("raw", raw_main, r);
	enum tls_progress p = tls_handshake(t);
	if (ret_host1)
		*ret_host1 = p == TLS_OPEN && tls_names(t, "host1");
	if (p == TLS_OPEN)
		g_assert_cmpint(tls_write(t, &(struct iovec){ "ours", 4 }, 1), ==, 4);
	g_test_message("%s", tls_why(t));
	shutdown(fd[0], SHUT_RDWR);
	g_thread_join(thread);
	tls_free(t);
	tls_credentials_free(c);
	close(fd[0]);
	close(fd[1]);
	return p;
}

static enum tls_progress connect_raw(struct raw *r, const char *expected)
{
	int fd[2];
	pair_new(fd);
	struct tls_credentials *c = pki_test_credentials("host2");
	struct tls *t = tls_new(c, TLS_CONNECTS, fd[0], expected);
	r->fd = fd[1];
	r->server = true;
	GThread *thread = g_thread_new("raw", raw_main, r);
	enum tls_progress p = tls_handshake(t);
	if (p == TLS_OPEN)
		g_assert_cmpint(tls_write(t, &(struct iovec){ "ours", 4 }, 1), ==, 4);
	g_test_message("%s", tls_why(t));
	shutdown(fd[0], SHUT_RDWR);
	g_thread_join(thread);
	tls_free(t);
	tls_credentials_free(c);
	close(fd[0]);
	close(fd[1]);
	return p;
}

static void test_accepts_a_good_peer(void)
{
	bool host1 = false;
	g_autofree char *folder = pki_test_host("ca", "host1", good_term());
	struct raw r = { .folder = folder };
	g_assert_cmpint(accept_raw(&r, &host1), ==, TLS_OPEN);
	g_assert_true(host1);
	g_assert_cmpmem(r.bytes, r.got, "ours", 4);
}

static void refused(struct raw r)
{
	g_assert_cmpint(accept_raw(&r, NULL), ==, TLS_FAILED);
	g_assert_cmpint(r.got, <=, 0);
	g_assert_cmpint(connect_raw(&r, "host1"), ==, TLS_FAILED);
	g_assert_cmpint(r.got, <=, 0);
}

/* Our side accepts only: a server must have a certificate to speak at all. */
static void test_TLS1_no_certificate(void)
{
	struct raw r = { 0 };
	g_assert_cmpint(accept_raw(&r, NULL), ==, TLS_FAILED);
	g_assert_cmpint(r.got, <=, 0);
}

static void test_TLS1_another_ca(void)
{
	g_autofree char *folder = pki_test_host("other", "host1", good_term());
	refused((struct raw){ .folder = folder });
}

static void test_TLS1_expired(void)
{
	g_autofree char *ca = pki_test_folder("ca"), *folder = g_build_filename(ca, "over", "host1", NULL), *over = g_build_filename(ca, "over", NULL);
	g_autofree char *a = g_build_filename(ca, "ca.pem", NULL), *b = g_build_filename(ca, "ca-key.pem", NULL);
	g_autofree char *c = g_build_filename(over, "ca.pem", NULL), *d = g_build_filename(over, "ca-key.pem", NULL);
	g_assert_cmpint(g_mkdir(over, 0700), ==, 0);    /* the same CA */
	g_assert_cmpint(link(a, c) + link(b, d), ==, 0);
	g_assert_true(pki_make_host(over, "host1", over_term(), false, NULL, NULL));
	refused((struct raw){ .folder = folder });
	g_assert_true(pki_make_host(over, "host1", coming_term(), true, NULL, NULL));
	refused((struct raw){ .folder = folder });
	g_autoptr(GError) error = NULL;
	g_assert_null(tls_credentials_load(folder, "host1", &error));
	g_assert_nonnull(strstr(error->message, "is valid from"));
}

static void test_TLS1_older_version(void)
{
	g_autofree char *folder = pki_test_host("ca", "host1", good_term());
	refused((struct raw){ .folder = folder, .priority = "NORMAL:-VERS-ALL:+VERS-TLS1.2" });
}

static void test_TLS2_wrong_name(void)
{
	bool host1 = true;
	g_autofree char *folder = pki_test_host("ca", "host3", good_term());
	struct raw r = { .folder = folder };
	g_assert_cmpint(connect_raw(&r, "host1"), ==, TLS_FAILED);
	g_assert_cmpint(r.got, <=, 0);
	r.server = false;
	g_assert_cmpint(accept_raw(&r, &host1), ==, TLS_OPEN);    /* who it is, is asked when it says so */
	g_assert_false(host1);
	r.got = 0;
	g_assert_cmpint(connect_raw(&r, "host3"), ==, TLS_OPEN);
	for (const char *const *n = (const char *const[]){ "host", "host33", "HOST3", "*", "host3.", NULL }; *n; n++)
		g_assert_cmpint(connect_raw(&r, *n), ==, TLS_FAILED);
}

/* ---- peers that do not speak TLS ---- */

static struct tls *nonblocking_server(struct tls_credentials *c, int fd)
{
	g_assert_cmpint(fcntl(fd, F_SETFL, O_NONBLOCK), ==, 0);
	return tls_new(c, TLS_ACCEPTS, fd, NULL);
}

/* It gets not one byte back. */
static void test_TLS1_garbage(void)
{
	struct tls_credentials *c = pki_test_credentials("host2");
	for (int i = 0; i < 200; i++) {
		int fd[2];
		char bytes[600];
		size_t n = i == 0 ? 18 : (size_t)g_test_rand_int_range(1, sizeof bytes);
		for (size_t k = 0; k < sizeof bytes; k++)
			bytes[k] = (char)g_test_rand_int();
		if (i % 2)    /* the head of a record that holds a ClientHello */
			memcpy(bytes, (const uint8_t[]){ 22, 3, 1, 0, 100, 1, 0, 0, 96, 3, 3 }, MIN(n, 11));
		if (i == 0)
			memcpy(bytes, "GET / HTTP/1.0\r\n\r\n", n);
		pair_new(fd);
		struct tls *t = nonblocking_server(c, fd[0]);
		g_assert_cmpint(tls_handshake(t), ==, TLS_MORE);
		g_assert_cmpint(send(fd[1], bytes, n, 0), ==, n);
		shutdown(fd[1], SHUT_WR);
		g_assert_cmpint(tls_handshake(t), ==, TLS_FAILED);
		g_assert_cmpint(tls_handshake(t), ==, TLS_FAILED);
		tls_free(t);
		close(fd[0]);
		g_assert_cmpint(recv(fd[1], bytes, sizeof bytes, 0), <=, 0);
		close(fd[1]);
	}
	tls_credentials_free(c);
}

/* TLS4: who says nothing, or only half a word, keeps nobody waiting. */
static void test_TLS4_stalls(void)
{
	struct tls_credentials *c = pki_test_credentials("host2");
	int fd[2];
	pair_new(fd);
	struct tls *t = tls_new(c, TLS_ACCEPTS, fd[0], NULL);
	g_assert_cmpint(send(fd[1], "\x16\x03\x01\x01", 4, 0), ==, 4);
	nsec_t deadline = clock_now() + 50 * NSEC_PER_MSEC;
	tls_set_deadline(t, deadline);
	g_assert_cmpint(tls_handshake(t), ==, TLS_MORE);
	g_assert_cmpint(clock_now(), >=, deadline);
	g_assert_cmpint(recv(fd[1], &(char){ 0 }, 1, MSG_DONTWAIT), ==, -1);
	tls_free(t);
	t = nonblocking_server(c, fd[0]);
	g_assert_cmpint(tls_handshake(t), ==, TLS_MORE);
	tls_free(t);
	close(fd[0]);
	close(fd[1]);
	tls_credentials_free(c);
}

/* ---- two of ours ---- */

struct both { int fd[2]; struct tls_credentials *c[2]; struct tls *t[2]; };

static void both_new(struct both *b, bool plain)
{
	int small = 16384;
	pair_new(b->fd);
	for (int i = 0; i < 2; i++) {
		setsockopt(b->fd[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
		g_assert_cmpint(fcntl(b->fd[i], F_SETFL, O_NONBLOCK), ==, 0);
		b->c[i] = plain ? NULL : pki_test_credentials(i ? "host2" : "host1");
		b->t[i] = tls_new(b->c[i], i ? TLS_ACCEPTS : TLS_CONNECTS, b->fd[i], i ? NULL : "host2");
	}
	enum tls_progress p[2] = { TLS_MORE, TLS_MORE };
	for (int n = 0; p[0] == TLS_MORE || p[1] == TLS_MORE; n++) {
		g_assert_cmpint(n, <, 100);
		p[n % 2] = tls_handshake(b->t[n % 2]);
	}
	g_assert_cmpint(p[0], ==, TLS_OPEN);
	g_assert_cmpint(p[1], ==, TLS_OPEN);
	g_assert_true(tls_names(b->t[1], "host1"));
	g_assert_true(plain == tls_names(b->t[1], "host3"));
}

static void both_free(struct both *b)
{
	for (int i = 0; i < 2; i++) {
		tls_free(b->t[i]);
		tls_credentials_free(b->c[i]);
		close(b->fd[i]);
	}
}

/* TLS3: pieces of every size, more than the socket holds, both ways: each byte once and in its place. */
static void test_TLS3_order(gconstpointer plain)
{
	struct both b;
	enum { ALL = 3 << 20 };
	g_autofree uint8_t *data = g_malloc(ALL), *in = g_malloc(ALL);
	size_t out_at[2] = { 0, 0 }, in_at[2] = { 0, 0 };
	unsigned waits = 0;
	for (size_t i = 0; i < ALL; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	both_new(&b, plain != NULL);
	while (in_at[0] < ALL || in_at[1] < ALL) {
		int me = g_test_rand_int_range(0, 2), other = 1 - me;
		struct iovec v[5];
		size_t at = out_at[me];
		int count = 0;
		for (; count < 5 && at < ALL; count++) {
			size_t n = (size_t)(g_test_rand_int_range(0, 4) ? g_test_rand_int_range(0, 2000) : g_test_rand_int_range(0, 70000));
			v[count] = (struct iovec){ data + at, MIN(n, ALL - at) };
			at += v[count].iov_len;
		}
		ssize_t n = at > out_at[me] ? tls_write(b.t[me], v, count) : 0;
		waits += n < 0;
		g_assert_true(n >= 0 || errno == EAGAIN);
		out_at[me] += n > 0 ? (size_t)n : 0;
		g_assert_true(tls_flush(b.t[me]) == 0 || errno == EAGAIN);
		do {
			n = tls_read(b.t[other], in, (size_t)g_test_rand_int_range(1, 100000));
			g_assert_true(n > 0 || (n < 0 && errno == EAGAIN));
			if (n > 0)
				g_assert_cmpmem(in, n, data + in_at[other], n);
			in_at[other] += n > 0 ? (size_t)n : 0;
		} while (tls_pending(b.t[other]));
	}
	g_assert_cmpuint(waits, >, 0);
	shutdown(b.fd[0], SHUT_WR);
	g_assert_cmpint(tls_read(b.t[1], in, 1), ==, 0);
	g_assert_cmpint(tls_read(b.t[1], in, 1), ==, 0);
	both_free(&b);
}

/* Many small pieces go as few records: what is on the wire is little more than what was said. */
static void test_batches(void)
{
	struct both b;
	struct iovec v[64];
	char frame[100] = { 0 };
	uint8_t wire[65536];
	both_new(&b, false);
	for (int i = 0; i < 64; i++)
		v[i] = (struct iovec){ frame, sizeof frame };
	g_assert_cmpint(tls_write(b.t[0], v, 64), ==, 6400);
	g_assert_cmpint(recv(b.fd[1], wire, sizeof wire, 0), ==, 6400 + 5 + 1 + 16);
	both_free(&b);
}

/* The first three bytes of a record, a type and a version, say nothing in TLS 1.3 (RFC 8446, 5.1 and 5.2), and GnuTLS looks at them or does not: what was
 * said is read as it was, or not at all. */
static bool is_ignored(ssize_t at, const char *in, ssize_t n)
{
	return at < 3 && n >= 13 && !memcmp(in, "what was saidmore", (size_t)n);
}

/* TLS5: each byte of a record, each bit of it: the reader fails, and hands nothing out. */
static void test_TLS5_flipped_bit(void)
{
	uint8_t wire[200];
	char in[100];
	ssize_t n = 1;
	for (ssize_t bit = 0; bit < 8 * n; bit++) {
		struct both b;
		ssize_t at = bit / 8;
		both_new(&b, false);
		g_assert_cmpint(tls_write(b.t[0], &(struct iovec){ "what was said", 13 }, 1), ==, 13);
		n = recv(b.fd[1], wire, sizeof wire, 0);
		g_assert_cmpint(n, >, 13);
		wire[at] ^= (uint8_t)(1u << bit % 8);
		g_assert_cmpint(send(b.fd[0], wire, (size_t)n, 0), ==, n);
		g_assert_cmpint(tls_write(b.t[0], &(struct iovec){ "more", 4 }, 1), ==, 4);
		shutdown(b.fd[0], SHUT_WR);
		ssize_t got = tls_read(b.t[1], in, sizeof in);
		if (!is_ignored(at, in, got)) {
			g_assert_cmpint(got, <=, 0);
			g_assert_cmpint(tls_read(b.t[1], in, sizeof in), <=, 0);
		}
		both_free(&b);
	}
}

/* A record that comes twice, or that is left out. */
static void test_TLS5_replay(void)
{
	uint8_t wire[200];
	char in[100];
	for (int leave_out = 0; leave_out < 2; leave_out++) {
		struct both b;
		both_new(&b, false);
		g_assert_cmpint(tls_write(b.t[0], &(struct iovec){ "once", 4 }, 1), ==, 4);
		ssize_t n = recv(b.fd[1], wire, sizeof wire, 0);
		for (int i = 0; i < 2 && !leave_out; i++)
			g_assert_cmpint(send(b.fd[0], wire, (size_t)n, 0), ==, n);
		g_assert_cmpint(tls_write(b.t[0], &(struct iovec){ "next", 4 }, 1), ==, 4);
		if (!leave_out)
			g_assert_cmpint(tls_read(b.t[1], in, 4), ==, 4);
		g_assert_cmpint(tls_read(b.t[1], in, sizeof in), ==, -1);
		g_assert_cmpint(errno, ==, EPROTO);
		both_free(&b);
	}
}

/* ---- files ---- */

static void expect_refused(const char *folder, const char *name, const char *words)
{
	g_autoptr(GError) error = NULL;
	g_assert_null(tls_credentials_load(folder, name, &error));
	g_assert_nonnull(error);
	g_assert_nonnull(strstr(error->message, words));
	g_assert_nonnull(strstr(error->message, "virtcft pki"));
	g_assert_null(strchr(error->message, '\n'));
}

static void test_files_that_are_refused(void)
{
	g_autofree char *ca = pki_test_folder("files"), *folder = pki_test_host("files", "h", good_term()), *other = pki_test_host("files", "i", good_term());
	g_autofree char *key = g_build_filename(folder, "key.pem", NULL), *cert = g_build_filename(folder, "cert.pem", NULL);
	g_autofree char *foreign = pki_test_host("other", "h", good_term()), *foreign_ca = g_build_filename(foreign, "ca.pem", NULL);
	g_autofree char *own_ca = g_build_filename(folder, "ca.pem", NULL), *other_key = g_build_filename(other, "key.pem", NULL), *text = NULL;
	gsize n;
	struct tls_credentials *c = tls_credentials_load(folder, "h", NULL);
	g_assert_nonnull(c);
	g_assert_cmpint(tls_credentials_end(c), >, g_get_real_time() / G_USEC_PER_SEC + 729 * 86400ll);
	tls_credentials_free(c);
	expect_refused("/nowhere", "h", "No such file");
	expect_refused(folder, "i", "does not name this host");
	g_assert_cmpint(chmod(key, 0644), ==, 0);
	expect_refused(folder, "h", "others may read this key (mode 0644");
	g_assert_cmpint(chmod(key, 0600), ==, 0);
	g_assert_cmpint(unlink(key) + link(other_key, key), ==, 0);
	expect_refused(folder, "h", "not the key of cert.pem");
	g_assert_true(g_file_set_contents(key, "nonsense", -1, NULL));
	g_assert_cmpint(chmod(key, 0600), ==, 0);
	expect_refused(folder, "h", "not the key of cert.pem");
	g_assert_true(pki_make_host(ca, "h", good_term(), true, NULL, NULL));
	g_assert_true(g_file_get_contents(foreign_ca, &text, &n, NULL));
	g_assert_true(g_file_set_contents(own_ca, text, (gssize)n, NULL));
	expect_refused(folder, "h", "not signed by the CA");
	g_assert_true(g_file_set_contents(cert, "nonsense", -1, NULL));
	expect_refused(folder, "h", "no certificate");
}

static unsigned mode(const char *a, const char *b)
{
	g_autofree char *path = g_build_filename(a, b, NULL);
	struct stat st;
	g_assert_cmpint(stat(path, &st), ==, 0);
	return st.st_mode & 07777;
}

static void test_PK(void)
{
	g_autofree char *ca = pki_test_folder("pk"), *own = pki_test_host("pk", "h", good_term()), *before = NULL, *after = NULL;
	g_autofree char *key = g_build_filename(own, "key.pem", NULL);
	g_autoptr(GError) error = NULL;
	gint64 end = 0;
	umask(0);
	for (const char *const *f = (const char *const[]){ "ca.pem", "cert.pem", "key.pem", NULL }; *f; f++)
		g_assert_cmpuint(mode(own, *f), ==, 0600);
	g_assert_cmpuint(mode(ca, "ca-key.pem"), ==, 0600);
	g_assert_cmpuint(mode(ca, ""), ==, 0700);
	g_assert_cmpuint(mode(own, ""), ==, 0700);
	g_assert_true(g_file_get_contents(key, &before, NULL, NULL));
	g_assert_false(pki_make_host(ca, "h", good_term(), false, NULL, &error));    /* PK2 */
	g_assert_nonnull(strstr(error->message, "is there already"));
	g_assert_false(pki_make_ca(ca, good_term(), false, NULL, NULL));
	g_assert_true(g_file_get_contents(key, &after, NULL, NULL));
	g_assert_cmpstr(before, ==, after);
	g_assert_true(pki_make_host(ca, "h", (struct pki_term){ good_term().from, 40000 }, true, &end, NULL));    /* PK3: no longer than the CA */
	g_assert_cmpint(end, <, good_term().from + 3700 * 86400ll);
	g_clear_pointer(&after, g_free);
	g_assert_true(g_file_get_contents(key, &after, NULL, NULL));
	g_assert_cmpstr(before, !=, after);
	for (const char *const *n = (const char *const[]){ "", "..", "a/b", "-h", "h h", "*", NULL }; *n; n++)
		g_assert_false(pki_make_host(ca, *n, good_term(), false, NULL, NULL));
	g_clear_error(&error);
	g_assert_false(pki_make_host(own, "h", good_term(), false, NULL, &error));
	g_assert_nonnull(strstr(error->message, "virtcft pki init"));
}

/* PK3: a host's certificate is no CA: what it has signed is refused. */
static void test_PK3_a_host_signs_nothing(void)
{
	g_autofree char *ca = pki_test_folder("ca"), *evil = pki_test_host("ca", "evil", good_term()), *key = g_build_filename(evil, "key.pem", NULL);
	g_autofree char *crt = g_build_filename(evil, "cert.pem", NULL), *a = g_build_filename(evil, "sub", NULL);
	g_autofree char *b = g_build_filename(a, "ca.pem", NULL), *c = g_build_filename(a, "ca-key.pem", NULL), *made = g_build_filename(a, "host1", NULL);
	g_assert_cmpint(g_mkdir(a, 0700), ==, 0);
	g_assert_cmpint(link(crt, b) + link(key, c), ==, 0);
	g_assert_true(pki_make_host(a, "host1", good_term(), false, NULL, NULL));
	g_autofree char *leaf = g_build_filename(made, "cert.pem", NULL), *x = NULL, *y = NULL, *chain = NULL;
	g_assert_true(g_file_get_contents(leaf, &x, NULL, NULL) && g_file_get_contents(crt, &y, NULL, NULL));
	chain = g_strconcat(x, y, NULL);
	g_assert_true(g_file_set_contents(leaf, chain, -1, NULL));
	refused((struct raw){ .folder = made });
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	alarm(120);
	g_test_add_func("/tls/good-peer", test_accepts_a_good_peer);
	g_test_add_func("/tls/TLS1-no-certificate", test_TLS1_no_certificate);
	g_test_add_func("/tls/TLS1-another-ca", test_TLS1_another_ca);
	g_test_add_func("/tls/TLS1-expired", test_TLS1_expired);
	g_test_add_func("/tls/TLS1-older-version", test_TLS1_older_version);
	g_test_add_func("/tls/TLS1-garbage", test_TLS1_garbage);
	g_test_add_func("/tls/TLS2-wrong-name", test_TLS2_wrong_name);
	g_test_add_data_func("/tls/TLS3-order", NULL, test_TLS3_order);
	g_test_add_data_func("/tls/TLS3-order-plain", "plain", test_TLS3_order);
	g_test_add_func("/tls/batches", test_batches);
	g_test_add_func("/tls/TLS4-stalls", test_TLS4_stalls);
	g_test_add_func("/tls/TLS5-flipped-bit", test_TLS5_flipped_bit);
	g_test_add_func("/tls/TLS5-replay", test_TLS5_replay);
	g_test_add_func("/tls/files", test_files_that_are_refused);
	g_test_add_func("/pki/PK1-PK2-PK3", test_PK);
	g_test_add_func("/pki/PK3-a-host-signs-nothing", test_PK3_a_host_signs_nothing);
	return g_test_run();
}
