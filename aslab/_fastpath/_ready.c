/* Ready: an awaitable that has its answer, or will find it in the magazine, in place of a coroutine that would not
   suspend. What has gone from the magazine by then is left to the coroutine of the method in Python.

   It passes for a coroutine where one is asked for: it has send, throw and close, is registered as
   collections.abc.Coroutine, and warns if it was never awaited. An answer that nobody took is given back: a buffer
   returns to its cache. What `await` iterates must be an iterator, and a coroutine is none: so from then on it is of
   another type, Awaited. */

#include "_core.h"

struct Ready {
    PyObject_HEAD
    Core *core;
    PyObject *value; /* NULL once taken */
    Front *front;    /* where to take it from when it is awaited; NULL from then on */
    PyObject *inner; /* the coroutine that does it instead; from then on the collector sees this object */
    PyObject *stop;  /* a StopIteration to use again, or NULL */
};

#define AGAIN "cannot reuse already awaited coroutine"

PyObject *ready_new(Core *core, PyObject *value) /* takes over the reference */
{
    Ready *ready;
    if (core->n_readies) {
        ready = core->readies[--core->n_readies];
        (void)PyObject_Init((PyObject *)ready, core->ready);
    } else if ((ready = PyObject_GC_New(Ready, core->ready)) != NULL) {
        ready->core = core;
        ready->stop = ready->inner = NULL;
        ready->front = NULL;
    } else {
        Py_XDECREF(value);
        return NULL;
    }
    ready->value = value;
    return (PyObject *)ready;
}

PyObject *ready_later(Core *core, Front *front)
{
    Ready *ready = (Ready *)ready_new(core, NULL);
    if (ready != NULL)
        ready->front = (Front *)Py_NewRef((PyObject *)front);
    return (PyObject *)ready;
}

/* It is awaited now. -1 with an error. */
static int ready_begin(Ready *ready)
{
    Front *front = ready->front;
    if (front == NULL)
        return 0;
    ready->front = NULL;
    ready->value = front_hit(ready->core, front);
    if (ready->value == NULL && !PyErr_Occurred()) {
        ready->inner = PyObject_CallOneArg(ready->core->slowly, (PyObject *)front);
        if (ready->inner != NULL)
            PyObject_GC_Track(ready);
    }
    Py_DECREF(front);
    return ready->value == NULL && ready->inner == NULL ? -1 : 0;
}

static int ready_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Ready *)self)->inner);
    return 0;
}

static int ready_clear(PyObject *self)
{
    Py_CLEAR(((Ready *)self)->inner);
    return 0;
}

void ready_clear_kept(Core *core)
{
    while (core->n_readies) {
        Ready *ready = core->readies[--core->n_readies];
        Py_XDECREF(ready->stop);
        PyObject_GC_Del(ready);
    }
}

static int is_buffer(Ready *ready, PyObject *value)
{
    return PyObject_TypeCheck(value, ready->core->handle);
}

/* Give back what nobody took. -1 with an error. */
static int give_back(Ready *ready)
{
    PyObject *value = ready->value, *gone = NULL;
    ready->value = NULL;
    if (value == NULL)
        return 0;
    if (is_buffer(ready, value) && ((Handle *)value)->slot != NULL)
        gone = PyObject_CallMethodNoArgs(value, ready->core->let_go);
    else
        gone = Py_NewRef(Py_None);
    Py_DECREF(value);
    Py_XDECREF(gone);
    return gone == NULL ? -1 : 0;
}

static void ready_dealloc(PyObject *self)
{
    Ready *ready = (Ready *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_GC_IsTracked(self)) {
        PyObject_GC_UnTrack(self);
        Py_CLEAR(ready->inner);
    }
    if (ready->value != NULL || ready->front != NULL) {
        Pending pending;
        HOLD(pending);
        int buffer = ready->front != NULL || is_buffer(ready, ready->value);
        Py_CLEAR(ready->front);
        if (give_back(ready))
            PyErr_WriteUnraisable(NULL);
        if (buffer &&
            PyErr_WarnEx(PyExc_RuntimeWarning, "coroutine 'Cache.alloc' was never awaited", 1))
            PyErr_WriteUnraisable(NULL);
        GO_ON(pending);
    }
    if (ready->stop != NULL) {
        PyStopIterationObject *stop = (PyStopIterationObject *)ready->stop;
        if (Py_REFCNT(stop) > 1) { /* somebody has caught it, so it is theirs */
            Py_CLEAR(ready->stop);
        } else {
            Py_CLEAR(stop->value);
            Py_CLEAR(stop->traceback);
            Py_CLEAR(stop->context);
            Py_CLEAR(stop->cause);
            Py_CLEAR(stop->dict);
#if PY_VERSION_HEX >= 0x030B0000
            Py_CLEAR(stop->notes);
#endif
        }
    }
    if (ready->core->n_readies < KEPT_READIES) {
        ready->core->readies[ready->core->n_readies++] = ready;
    } else {
        Py_XDECREF(ready->stop);
        PyObject_GC_Del(ready);
    }
    Py_DECREF(type);
}

static PyObject *ready_take(Ready *ready)
{
    PyObject *value = ready->value;
    ready->value = NULL;
    if (value == NULL)
        PyErr_SetString(PyExc_RuntimeError, AGAIN);
    return value;
}

/* What `await` and asyncio's tasks call on 3.11, and its tasks later. */
static PySendResult ready_am_send(PyObject *self, PyObject *given, PyObject **result)
{
    Ready *ready = (Ready *)self;
    if (given != Py_None && (ready->value != NULL || ready->front != NULL)) {
        *result = NULL;
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    *result = NULL;
    if (ready_begin(ready))
        return PYGEN_ERROR;
    if (ready->inner != NULL) {
        PyObject *inner = Py_NewRef(ready->inner);
        PySendResult sent = PyIter_Send(inner, given, result);
        Py_DECREF(inner);
        return sent;
    }
    *result = ready_take(ready);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

#if PY_VERSION_HEX >= 0x030E0000 /* where a call may borrow what a variable names */
#define is_let_go PyUnstable_Object_IsUniqueReferencedTemporary
#elif PY_VERSION_HEX >= 0x030C0000
/* Whether only `await` refers to it, and so lets go of it at once: others would keep with it the answer in its `stop`. */
static inline int is_let_go(PyObject *self)
{
    return Py_REFCNT(self) == 1;
}
#endif

/* What `await` calls from 3.12 on: the answer comes by a StopIteration, and making one costs more than the rest. */
static PyObject *ready_next(PyObject *self)
{
    Ready *ready = (Ready *)self;
    PyObject *value;
    if (ready->value == NULL && ready->front == NULL && ready->inner != NULL) {
        PySendResult sent = ready_am_send(self, Py_None, &value);
        if (sent != PYGEN_RETURN)
            return value;
    } else {
        if (ready_begin(ready))
            return NULL;
        if (ready->inner != NULL)
            return ready_next(self);
        value = ready_take(ready);
    }
    if (value == NULL)
        return NULL;
#if PY_VERSION_HEX >= 0x030C0000
    if (is_let_go(self)) {
        if (ready->stop != NULL && Py_REFCNT(ready->stop) > 1)
            Py_CLEAR(ready->stop);
        if (ready->stop == NULL && (ready->stop = PyObject_CallNoArgs(PyExc_StopIteration)) == NULL) {
            ready->value = value;
            return NULL;
        }
        Py_XSETREF(((PyStopIterationObject *)ready->stop)->value, value);
        PyErr_SetRaisedException(Py_NewRef(ready->stop));
        return NULL;
    }
#endif
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(value);
    return NULL;
}

static PyObject *ready_send(PyObject *self, PyObject *given)
{
    PyObject *result;
    if (given == Py_None)
        return ready_next(self);
    if (((Ready *)self)->inner != NULL)
        return PyObject_CallMethod(((Ready *)self)->inner, "send", "O", given);
    return ready_am_send(self, given, &result) == PYGEN_ERROR ? NULL : result;
}

static PyObject *ready_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Ready *ready = (Ready *)self;
    if (ready->inner != NULL)
        return PyObject_CallMethod(ready->inner, "close", NULL);
    Py_CLEAR(ready->front);
    return give_back(ready) ? NULL : Py_NewRef(Py_None);
}

/* As a coroutine that has not begun: it ends with that exception. */
static PyObject *ready_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes from 1 to 3 arguments");
        return NULL;
    }
    Ready *ready = (Ready *)self;
    if (ready->inner != NULL) {
        PyObject *method = PyObject_GetAttrString(ready->inner, "throw");
        PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, nargs, NULL);
        Py_XDECREF(method);
        return result;
    }
    if (ready->value == NULL && ready->front == NULL) {
        PyErr_SetString(PyExc_RuntimeError, AGAIN);
        return NULL;
    }
    Py_CLEAR(ready->front);
    if (give_back((Ready *)self))
        return NULL;
    PyObject *type = args[0], *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    if (PyExceptionInstance_Check(type) && value != NULL)
        PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
    else if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        PyErr_SetObject(type, value);
    else
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException");
    return NULL;
}

static PyObject *ready_await(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self), *awaited = ((Ready *)self)->core->awaited;
    if (awaited != NULL) { /* else the interpreter is being torn down */
        Py_SET_TYPE(self, (PyTypeObject *)Py_NewRef((PyObject *)awaited));
        Py_DECREF(type);
    }
    return Py_NewRef(self);
}

static PyObject *ready_self(PyObject *self)
{
    return Py_NewRef(self);
}

/* It has no frame, never runs and awaits nothing, unless a coroutine does: anyio and the loops ask for that. */
static PyObject *ready_state(PyObject *self, void *name)
{
    PyObject *inner = ((Ready *)self)->inner;
    if (inner != NULL)
        return PyObject_GetAttrString(inner, name);
    return Py_NewRef(strcmp(name, "cr_frame") == 0 || strcmp(name, "cr_await") == 0 ? Py_None : Py_False);
}

/* `inspect.iscoroutine`, which frameworks ask, asks for this. */
static PyObject *ready_class(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)&PyCoro_Type);
}

static PyObject *ready_name(PyObject *Py_UNUSED(self), void *name)
{
    return PyUnicode_FromString(name);
}

static PyMethodDef ready_methods[] = {METHOD("send", ready_send, METH_O), METHOD("close", ready_close, METH_NOARGS),
                                      METHOD("throw", ready_throw, METH_FASTCALL), {NULL, NULL, 0, NULL}};
static PyGetSetDef ready_getset[] = {{"__class__", ready_class, NULL, NULL, NULL},
                                     {"cr_frame", ready_state, NULL, NULL, "cr_frame"},
                                     {"cr_await", ready_state, NULL, NULL, "cr_await"},
                                     {"cr_running", ready_state, NULL, NULL, "cr_running"},
                                     {"cr_suspended", ready_state, NULL, NULL, "cr_suspended"},
                                     {"__name__", ready_name, NULL, NULL, "alloc"},
                                     {"__qualname__", ready_name, NULL, NULL, "Cache.alloc"},
                                     {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot ready_slots[] = {{Py_tp_traverse, ready_traverse}, {Py_tp_clear, ready_clear},
                                    {Py_tp_dealloc, ready_dealloc},   {Py_am_await, ready_await},
                                    {Py_am_send, ready_am_send},      {Py_tp_methods, ready_methods},
                                    {Py_tp_getset, ready_getset},     {0, NULL}};
PyType_Spec ready_spec = {"aslab._fastpath._core.Ready", sizeof(Ready), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                          ready_slots};

static PyType_Slot awaited_slots[] = {{Py_tp_traverse, ready_traverse}, {Py_tp_clear, ready_clear},
                                      {Py_tp_dealloc, ready_dealloc},   {Py_am_await, ready_self},
                                      {Py_am_send, ready_am_send},      {Py_tp_iter, ready_self},
                                      {Py_tp_iternext, ready_next},     {Py_tp_methods, ready_methods},
                                      {Py_tp_getset, ready_getset},     {0, NULL}};
PyType_Spec awaited_spec = {"aslab._fastpath._core.Awaited", sizeof(Ready), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                            awaited_slots};
